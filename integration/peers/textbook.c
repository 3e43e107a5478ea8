// SPDX-License-Identifier: GPL-3.0-or-later
//
// A program that rewrites queued packets as the library's documentation shows it: one system call to receive a packet, one
// for its verdict, the kernel's buffers as they are, packets cut to the MTU before they are queued.
//
//   textbook QUEUE HOME HOST          endpoints as ADDRESS:PORT

#include "flow.h"
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <stdlib.h>
#include <sys/socket.h>

static struct rule rule;

static int decide(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data, void *context)
{
    (void)message, (void)context;
    struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(data);
    if (!header) return 0;
    uint8_t *packet;
    int length = nfq_get_payload(data, &packet);
    // Without the GSO flag the kernel finishes every sum before it queues the packet.
    bool rewritten = length > 0 && apply(&rule, packet, length, INCREMENTAL);
    return nfq_set_verdict(queue, ntohl(header->packet_id), NF_ACCEPT, rewritten ? length : 0, rewritten ? packet : NULL);
}

int main(int count, char **words)
{
    if (count != 4 || !parse_endpoint(words[2], &rule.home) || !parse_endpoint(words[3], &rule.host)) return 2;
    struct nfq_handle *library = nfq_open();
    struct nfq_q_handle *queue = library ? nfq_create_queue(library, atoi(words[1]), decide, NULL) : NULL;
    if (!queue || nfq_set_mode(queue, NFQNL_COPY_PACKET, 0xffff) < 0) {
        perror("queue");
        return 1;
    }
    static char buffer[1 << 17] __attribute__((aligned(8)));
    for (;;) {
        ssize_t length = recv(nfq_fd(library), buffer, sizeof buffer, 0);
        if (length > 0) nfq_handle_packet(library, buffer, length);
    }
}
