// SPDX-License-Identifier: GPL-3.0-or-later
//
// The libc and kernel calls that Swift's Glibc module does not show, one function each, with the reason.
// No logic lives here.
#pragma once

#include <stddef.h>
#include <stdint.h>
// eventfd(2) is not in Swift's Glibc module.
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

/// recvmmsg(2) and struct mmsghdr are _GNU_SOURCE and so invisible to Swift. Fills `received[i]` with the length of
/// message i. Blocks for the first message only (MSG_WAITFORONE) unless `nonblocking`. Returns the number of messages
/// or -errno.
int nfqmig_receive_many(int fd, struct iovec *buffers, unsigned count, unsigned *received, int nonblocking);

/// sendmmsg(2), for a raw socket of `family` that takes whole packets. They lie in `octets` one behind the other, each so
/// long as `lengths` says; each goes to the destination that its own header names. Stops at the first that the kernel refuses.
/// Returns how many it has taken, at most 256, or -errno when the first was refused.
int nfqmig_send_packets(int fd, int family, const unsigned char *octets, const unsigned *lengths, unsigned count);

/// pthread_setaffinity_np(3) is _GNU_SOURCE. Pins the calling thread to `cpu`. Returns 0 or -errno.
int nfqmig_pin_thread(unsigned cpu);

/// pthread_setname_np(3) is _GNU_SOURCE. Names the calling thread (15 bytes at most). Returns 0 or -errno.
int nfqmig_name_thread(const char *name);

/// capget(2) has no libc wrapper. 1 when the process has `capability` (a CAP_ number) effective, 0 when not, -errno.
int nfqmig_has_capability(unsigned capability);

/// ioctl(2) is variadic. The largest MTU of this network namespace's interfaces that are up, loopback apart; 0 for none.
unsigned nfqmig_largest_mtu(void);

/// mallopt(3) is in malloc.h, which Glibc's module map leaves out. From `large` octets on, memory comes from the system and
/// goes back to it at once; of what is smaller, twice as much may be kept unused at the end of a heap.
void nfqmig_limit_heap(int large);

/// malloc_trim(3) is there too. Gives unused memory of the heap back.
void nfqmig_trim_heap(void);

/// SO_NETNS_COOKIE (Linux 5.14) is not in every libc's headers. The number of the calling thread's network namespace, which
/// no other one has until the machine boots again; 0 when there is none.
uint64_t nfqmig_network_cookie(void);

/// setns(2) is _GNU_SOURCE. Moves the calling thread into the network namespace open as `fd`. Returns 0 or -errno.
int nfqmig_enter_network_namespace(int fd);

/// unshare(CLONE_NEWNET) for the calling thread: the tests' own, empty network namespace. Returns 0 or -errno.
int nfqmig_unshare_network(void);

/// <linux/filter.h> is macros (BPF_STMT, SKF_AD_NLATTR) that Swift does not import. Lets only conntrack messages of TCP
/// connections into the receive buffer of the netlink socket `fd`. Returns 0 or -errno.
int nfqmig_receive_only_tcp_conntrack(int fd);

/// pidfd_open(2), memfd_create(2) and closefrom in posix_spawn are not in Swift's Glibc module. Starts the program `path`
/// in "/", in a process group of its own, with all signals at their defaults, `input` (a copy of these octets) as its
/// standard input, `output` and `error` as its standard output and error, and nothing else of ours open. Returns its
/// process id, and in `*pidfd` a descriptor that can be read once it has ended; or -errno.
int nfqmig_spawn(const char *path, char *const arguments[], char *const environment[], const void *input,
                 size_t length, int output, int error, int *pidfd);
