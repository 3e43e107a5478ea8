// SPDX-License-Identifier: GPL-3.0-or-later
#define _GNU_SOURCE
#include "CLinuxShims.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <malloc.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { most_messages = 256 };

int nfqmig_receive_many(int fd, struct iovec *buffers, unsigned count, unsigned *received, int nonblocking)
{
    struct mmsghdr messages[most_messages];
    if (count > most_messages)
        count = most_messages;
    memset(messages, 0, count * sizeof messages[0]);
    for (unsigned i = 0; i < count; i++) {
        messages[i].msg_hdr.msg_iov = &buffers[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int n = recvmmsg(fd, messages, count, nonblocking ? MSG_DONTWAIT : MSG_WAITFORONE, NULL);
    if (n < 0)
        return -errno;
    for (int i = 0; i < n; i++)
        received[i] = messages[i].msg_len;
    return n;
}

int nfqmig_send_packets(int fd, int family, const unsigned char *octets, const unsigned *lengths, unsigned count)
{
    struct mmsghdr messages[most_messages];
    struct iovec packets[most_messages];
    union {
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } names[most_messages];
    if (count > most_messages)
        count = most_messages;
    memset(messages, 0, count * sizeof messages[0]);
    memset(names, 0, count * sizeof names[0]);
    for (unsigned i = 0; i < count; i++) {
        packets[i].iov_base = (void *)octets;
        packets[i].iov_len = lengths[i];
        // The port stays 0: it would be taken for a protocol number (`rawv6_sendmsg`).
        if (family == AF_INET) {
            names[i].v4.sin_family = AF_INET;
            memcpy(&names[i].v4.sin_addr, octets + 16, 4);
            messages[i].msg_hdr.msg_namelen = sizeof names[i].v4;
        } else {
            names[i].v6.sin6_family = AF_INET6;
            memcpy(&names[i].v6.sin6_addr, octets + 24, 16);
            messages[i].msg_hdr.msg_namelen = sizeof names[i].v6;
        }
        messages[i].msg_hdr.msg_name = &names[i];
        messages[i].msg_hdr.msg_iov = &packets[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        octets += lengths[i];
    }
    int n;
    do
        n = sendmmsg(fd, messages, count, 0);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

int nfqmig_pin_thread(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return -pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

int nfqmig_name_thread(const char *name)
{
    return -pthread_setname_np(pthread_self(), name);
}

int nfqmig_has_capability(unsigned capability)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];
    memset(data, 0, sizeof data);
    if (syscall(SYS_capget, &header, data) < 0)
        return -errno;
    return (data[capability / 32].effective >> (capability % 32)) & 1;
}

int nfqmig_enter_network_namespace(int fd)
{
    return setns(fd, CLONE_NEWNET) < 0 ? -errno : 0;
}

int nfqmig_unshare_network(void)
{
    return unshare(CLONE_NEWNET) < 0 ? -errno : 0;
}

int nfqmig_receive_only_tcp_conntrack(int fd)
{
    // NLATTR finds an attribute from offset A on, of type X, and NLATTR_NEST inside the one at A; A becomes its offset, or
    // 0. What is not understood passes, for the reader to judge.
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_IMM, sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg)),
        BPF_STMT(BPF_LDX | BPF_IMM, CTA_TUPLE_ORIG),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_NLATTR),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 9, 0),
        BPF_STMT(BPF_LDX | BPF_IMM, CTA_TUPLE_PROTO),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_NLATTR_NEST),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 6, 0),
        BPF_STMT(BPF_LDX | BPF_IMM, CTA_PROTO_NUM),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_NLATTR_NEST),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 3, 0),
        BPF_STMT(BPF_MISC | BPF_TAX, 0),
        BPF_STMT(BPF_LD | BPF_B | BPF_IND, sizeof(struct nlattr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_TCP, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog filter = { .len = sizeof program / sizeof program[0], .filter = program };
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) < 0 ? -errno : 0;
}

/// A file in memory that holds these octets, at its start; -errno.
static int memory_file(const void *octets, size_t length)
{
    int fd = memfd_create("nfqmigd", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    const char *next = octets;
    while (length > 0) {
        ssize_t written = write(fd, next, length);
        if (written < 0) {
            int failure = errno;
            close(fd);
            return -failure;
        }
        next += written;
        length -= (size_t)written;
    }
    lseek(fd, 0, SEEK_SET);
    return fd;
}

int nfqmig_spawn(const char *path, char *const arguments[], char *const environment[], const void *input,
                 size_t length, int output, int error, int *pidfd)
{
    int in = memory_file(input, length);
    if (in < 0)
        return in;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_adddup2(&actions, in, 0);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_adddup2(&actions, error, 2);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    posix_spawn_file_actions_addchdir_np(&actions, "/");
    sigset_t all, none;
    sigfillset(&all);
    sigemptyset(&none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    pid_t pid = 0;
    int failure = posix_spawn(&pid, path, &actions, &attributes, arguments, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(in);
    if (failure)
        return -failure;
    *pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (*pidfd < 0) {
        failure = errno;
        kill(-pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return -failure;
    }
    return pid;
}

void nfqmig_limit_heap(int large)
{
    mallopt(M_MMAP_THRESHOLD, large);
    mallopt(M_TRIM_THRESHOLD, 2 * large);
}

void nfqmig_trim_heap(void)
{
    malloc_trim(0);
}

uint64_t nfqmig_network_cookie(void)
{
    uint64_t cookie = 0;
    socklen_t length = sizeof cookie;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    // asm-generic/socket.h: SO_NETNS_COOKIE.
    if (fd >= 0 && getsockopt(fd, SOL_SOCKET, 71, &cookie, &length) != 0)
        cookie = 0;
    if (fd >= 0)
        close(fd);
    return cookie;
}

unsigned nfqmig_largest_mtu(void)
{
    unsigned largest = 0;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct if_nameindex *interfaces = if_nameindex();
    for (struct if_nameindex *each = interfaces; each && each->if_index; each++) {
        struct ifreq request = { 0 };
        strncpy(request.ifr_name, each->if_name, IFNAMSIZ - 1);
        if (ioctl(fd, SIOCGIFFLAGS, &request) || !(request.ifr_flags & IFF_UP) || request.ifr_flags & IFF_LOOPBACK)
            continue;
        if (!ioctl(fd, SIOCGIFMTU, &request) && request.ifr_mtu > 0 && (unsigned)request.ifr_mtu > largest)
            largest = (unsigned)request.ifr_mtu;
    }
    if (interfaces)
        if_freenameindex(interfaces);
    if (fd >= 0)
        close(fd);
    return largest;
}
