// SPDX-License-Identifier: GPL-3.0-or-later
//
// A program that rewrites queued packets as well as C can: packets of several segments uncut, 32 at a time with one
// recvmmsg(2), all their verdicts with one sendmsg(2), each rewritten packet straight out of the buffer that it was
// received in, a sum over the whole packet only where somebody looks at it, large buffers, no fail-open, one pinned thread
// a queue.
//
//   batched FIRST-QUEUE QUEUES HOME HOST [mark]   endpoints as ADDRESS:PORT
//
// With `mark` it only decides: it sees the first 128 octets of a packet and accepts it with a mark, 1 for one to the host and
// 2 for one to the client, by which nftables rewrites it behind the queue. The rest of the packet never leaves the kernel.
//
// At SIGTERM it prints what it has done as JSON.

#define _GNU_SOURCE
#include "flow.h"
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { BATCH = 32, SLOT = 65536 + 2048 };

struct verdict {
    struct nlmsghdr message;
    struct nfgenmsg family;
    struct nlattr verdict_attribute;
    struct nfqnl_msg_verdict_hdr verdict;
    // NFQA_PAYLOAD, whose octets are elsewhere, or NFQA_MARK.
    struct nlattr extra;
    uint32_t mark;
} __attribute__((packed));

struct worker {
    pthread_t thread;
    int queue;
    struct mnl_socket *socket;
    uint64_t packets, rewritten, calls, errors;
    uint8_t *slots;
    struct mmsghdr received[BATCH];
    struct iovec slot[BATCH], parts[2 * BATCH];
    struct verdict verdicts[BATCH];
};

static struct rule rule;
static bool marks;

static void bind_queue(struct worker *worker)
{
    char octets[512], answer[4096];
    struct nlmsghdr *message = mnl_nlmsg_put_header(octets);
    message->nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG;
    message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    struct nfgenmsg *family = mnl_nlmsg_put_extra_header(message, sizeof *family);
    *family = (struct nfgenmsg){ .version = NFNETLINK_V0, .res_id = htons(worker->queue) };
    struct nfqnl_msg_config_cmd command = { .command = NFQNL_CFG_CMD_BIND };
    struct nfqnl_msg_config_params copy = { .copy_range = htonl(marks ? 128 : 0xffff), .copy_mode = NFQNL_COPY_PACKET };
    mnl_attr_put(message, NFQA_CFG_CMD, sizeof command, &command);
    mnl_attr_put(message, NFQA_CFG_PARAMS, sizeof copy, &copy);
    mnl_attr_put_u32(message, NFQA_CFG_QUEUE_MAXLEN, htonl(4096));
    mnl_attr_put_u32(message, NFQA_CFG_FLAGS, htonl(NFQA_CFG_F_GSO));
    mnl_attr_put_u32(message, NFQA_CFG_MASK, htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN));
    ssize_t length = mnl_socket_sendto(worker->socket, message, message->nlmsg_len);
    if (length > 0) length = mnl_socket_recvfrom(worker->socket, answer, sizeof answer);
    if (length < 0 || mnl_cb_run(answer, length, 0, mnl_socket_get_portid(worker->socket), NULL, NULL) < 0) {
        perror("queue");
        exit(1);
    }
}

// Decides about one message; where its verdict's parts go.
static struct iovec *decide(struct worker *worker, struct nlmsghdr *message, struct verdict *verdict, struct iovec *part)
{
    if (message->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET)) {
        worker->errors++;
        return part;
    }
    const struct nfqnl_msg_packet_hdr *header = NULL;
    const struct nlattr *attribute;
    uint8_t *packet = NULL;
    uint32_t info = 0, length = 0;
    mnl_attr_for_each(attribute, message, sizeof(struct nfgenmsg)) {
        switch (mnl_attr_get_type(attribute)) {
        case NFQA_PACKET_HDR: header = mnl_attr_get_payload(attribute); break;
        case NFQA_SKB_INFO: info = ntohl(mnl_attr_get_u32(attribute)); break;
        case NFQA_PAYLOAD:
            packet = mnl_attr_get_payload(attribute);
            length = mnl_attr_get_payload_len(attribute);
            break;
        }
    }
    if (!header) return part;
    // Segments that a packet is cut into get new sums; but conntrack, after prerouting, looks at that of the whole.
    bool segmented = info & NFQA_SKB_GSO;
    enum sum sum = segmented ? (header->hook == NF_INET_PRE_ROUTING ? FULL : UNTOUCHED)
                             : info & NFQA_SKB_CSUMNOTREADY ? FULL : INCREMENTAL;
    uint32_t mark = marks && packet ? covered(&rule, packet, length) : 0;
    bool rewritten = !marks && packet && apply(&rule, packet, length, sum);
    struct nlattr extra = rewritten ? (struct nlattr){ sizeof extra + length, NFQA_PAYLOAD }
                                    : (struct nlattr){ sizeof extra + sizeof mark, NFQA_MARK };
    size_t own = mark ? sizeof *verdict : offsetof(struct verdict, extra) + (rewritten ? sizeof extra : 0);
    *verdict = (struct verdict){
        .message = { .nlmsg_len = own + (rewritten ? NLA_ALIGN(length) : 0), .nlmsg_flags = NLM_F_REQUEST,
                     .nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT },
        .family = { .version = NFNETLINK_V0, .res_id = htons(worker->queue) },
        .verdict_attribute = { sizeof(struct nlattr) + sizeof verdict->verdict, NFQA_VERDICT_HDR },
        .verdict = { htonl(NF_ACCEPT), header->packet_id },
        .extra = extra,
        .mark = htonl(mark),
    };
    *part++ = (struct iovec){ verdict, own };
    // Padded with whatever stands behind it in the slot.
    if (rewritten) *part++ = (struct iovec){ packet, NLA_ALIGN(length) };
    worker->packets++;
    worker->rewritten += rewritten || mark;
    return part;
}

__attribute__((noreturn)) static void *work(void *context)
{
    struct worker *worker = context;
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(worker->queue % sysconf(_SC_NPROCESSORS_ONLN), &cpu);
    pthread_setaffinity_np(pthread_self(), sizeof cpu, &cpu);
    int fd = mnl_socket_get_fd(worker->socket);
    for (int index = 0; index < BATCH; index++) {
        worker->slot[index] = (struct iovec){ worker->slots + index * SLOT, SLOT };
        worker->received[index].msg_hdr = (struct msghdr){ .msg_iov = &worker->slot[index], .msg_iovlen = 1 };
    }
    for (;;) {
        int count = recvmmsg(fd, worker->received, BATCH, MSG_WAITFORONE, NULL);
        worker->calls++;
        if (count < 0) {
            worker->errors += errno != EINTR;
            continue;
        }
        struct iovec *end = worker->parts;
        for (int index = 0; index < count; index++)
            end = decide(worker, worker->slot[index].iov_base, &worker->verdicts[index], end);
        if (end == worker->parts) continue;
        struct msghdr verdicts = { .msg_iov = worker->parts, .msg_iovlen = end - worker->parts };
        worker->errors += sendmsg(fd, &verdicts, 0) < 0;
        worker->calls++;
    }
}

int main(int count, char **words)
{
    marks = count == 6 && !strcmp(words[5], "mark");
    if (count != 5 + marks || !parse_endpoint(words[3], &rule.home) || !parse_endpoint(words[4], &rule.host)) return 2;
    int queues = atoi(words[2]), large = 32 << 20, number;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    struct worker *workers = calloc(queues, sizeof *workers);
    for (int index = 0; index < queues; index++) {
        struct worker *worker = &workers[index];
        worker->queue = atoi(words[1]) + index;
        worker->slots = aligned_alloc(4096, BATCH * SLOT);
        worker->socket = mnl_socket_open(NETLINK_NETFILTER);
        if (!worker->socket || mnl_socket_bind(worker->socket, 0, MNL_SOCKET_AUTOPID)) return 1;
        int fd = mnl_socket_get_fd(worker->socket);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &large, sizeof large);
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &large, sizeof large);
        bind_queue(worker);
        pthread_create(&worker->thread, NULL, work, worker);
    }
    sigwait(&signals, &number);
    uint64_t packets = 0, rewritten = 0, calls = 0, errors = 0;
    for (int index = 0; index < queues; index++) {
        packets += workers[index].packets;
        rewritten += workers[index].rewritten;
        calls += workers[index].calls;
        errors += workers[index].errors;
    }
    printf("{\"packets\": %lu, \"rewritten\": %lu, \"calls\": %lu, \"errors\": %lu}\n", packets, rewritten, calls, errors);
    return 0;
}
