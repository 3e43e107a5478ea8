// SPDX-License-Identifier: GPL-3.0-or-later
#include "AllocationCounter.h"

#include <errno.h>
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif

// Initial-exec: thread-local storage that is reached without a call that could itself allocate.
static __thread long count __attribute__((tls_model("initial-exec")));
static __thread long *shared __attribute__((tls_model("initial-exec")));

void allocation_counter_register(long *slot)
{
    shared = slot;
    if (slot)
        __atomic_store_n(slot, count, __ATOMIC_RELAXED);
}

long allocation_counter_read(const long *slot)
{
    return __atomic_load_n(slot, __ATOMIC_RELAXED);
}

#ifdef SANITIZED

long allocation_count_of_this_thread(void)
{
    return -1;
}

#else

// The C library's own functions, under the names that it keeps for stand-ins like this one.
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

long allocation_count_of_this_thread(void)
{
    return count;
}

static void counted(void)
{
    count++;
    if (shared)
        __atomic_store_n(shared, count, __ATOMIC_RELAXED);
}

void *malloc(size_t size)
{
    counted();
    return __libc_malloc(size);
}

void *calloc(size_t number, size_t size)
{
    counted();
    return __libc_calloc(number, size);
}

void *realloc(void *old, size_t size)
{
    counted();
    return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size)
{
    counted();
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    counted();
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    if (alignment % sizeof(void *) || (alignment & (alignment - 1)) || !alignment)
        return EINVAL;
    counted();
    int saved = errno;
    void *memory = __libc_memalign(alignment, size);
    errno = saved;
    if (!memory)
        return ENOMEM;
    *result = memory;
    return 0;
}

void free(void *memory)
{
    __libc_free(memory);
}

#endif
