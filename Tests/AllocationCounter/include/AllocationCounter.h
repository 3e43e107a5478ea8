// SPDX-License-Identifier: GPL-3.0-or-later
//
// Counts the heap allocations of each thread of a test process. Linking this stands in for malloc(3) and its kin in the
// whole process, shared libraries included, and hands every call on to the C library.
#pragma once

/// Allocations (malloc, calloc, realloc, aligned_alloc, posix_memalign, memalign) of the calling thread so far; -1 when
/// they are not counted because a sanitizer has malloc for itself.
long allocation_count_of_this_thread(void);

/// From now on the calling thread keeps its count in `*slot` as well, for other threads to read; NULL ends that. The
/// slot must outlive the thread or be taken back.
void allocation_counter_register(long *slot);

/// Reads a slot that another thread keeps its count in.
long allocation_counter_read(const long *slot);
