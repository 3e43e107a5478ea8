// SPDX-License-Identifier: GPL-3.0-or-later
//
// Holds every packet of a queue for the same time: a long wire, for kernels without netem.
//
//   delay QUEUE MILLISECONDS

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum { MOST = 65536 };

static struct { uint32_t number; double due; } waiting[MOST];
static unsigned first, end;
static double hold;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static int keep(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data, void *context)
{
    (void)message, (void)context;
    struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(data);
    if (!header) return 0;
    uint32_t number = ntohl(header->packet_id);
    if (end - first == MOST) return nfq_set_verdict(queue, number, NF_DROP, 0, NULL);
    waiting[end % MOST].number = number;
    waiting[end++ % MOST].due = now() + hold;
    return 0;
}

int main(int count, char **words)
{
    if (count != 3) return 2;
    hold = atof(words[2]);
    struct nfq_handle *library = nfq_open();
    struct nfq_q_handle *queue = library ? nfq_create_queue(library, atoi(words[1]), keep, NULL) : NULL;
    if (!queue || nfq_set_mode(queue, NFQNL_COPY_META, 0) < 0 || nfq_set_queue_maxlen(queue, MOST) < 0) {
        perror("queue");
        return 1;
    }
    nfnl_rcvbufsiz(nfq_nfnlh(library), 8 << 20);
    static char buffer[8192];
    struct pollfd socket = { nfq_fd(library), POLLIN, 0 };
    for (;;) {
        double left = end == first ? 1e3 : waiting[first % MOST].due - now();
        struct timespec time = { (int)(left / 1e3), (long)(left * 1e6) % 1000000000 };
        if (left > 0 && ppoll(&socket, 1, &time, NULL) > 0) {
            ssize_t length = recv(socket.fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (length > 0) nfq_handle_packet(library, buffer, length);
        }
        while (end != first && waiting[first % MOST].due <= now())
            nfq_set_verdict(queue, waiting[first++ % MOST].number, NF_ACCEPT, 0, NULL);
    }
}
