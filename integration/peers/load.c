// SPDX-License-Identifier: GPL-3.0-or-later
//
// Makes the loads of the benchmark, and serves them.
//
//   load serve PORT
//   load bulk ADDRESS PORT STREAMS SECONDS up|down
//   load pingpong ADDRESS PORT CONNECTIONS SECONDS OCTETS
//   load segments ADDRESS PORT STREAMS SECONDS MSS        as many segments of MSS octets (options included) as pass
//   load connect ADDRESS PORT PARALLEL SECONDS            opens and resets connections
//   load verify ADDRESS PORT STREAMS OCTETS               sends, has it echoed, compares every octet
//
// The first octet of a connection says what the server does with it. A client prints one JSON object.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4096, CHUNK = 256 << 10, ECHO = 'e', SINK = 's', SOURCE = 'g' };

struct connection {
    int fd;
    char service;             // server: 0 until the first octet
    uint64_t received, sent;
    double since;
    size_t pending, offset;   // echo: what is still to be sent back from `kept`
    uint8_t *kept;
};

static uint8_t chunk[CHUNK];
static int poller;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void set(int fd, int level, int option, int value) { setsockopt(fd, level, option, &value, sizeof value); }

static void watch(int operation, struct connection *connection, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = connection };
    if (epoll_ctl(poller, operation, connection->fd, &event)) fail("epoll_ctl");
}

static void forget(struct connection *connection)
{
    close(connection->fd);
    free(connection->kept);
    free(connection);
}

// ------------------------------------------------------------------------------------------------ server

// False when the connection is over.
static bool echo(struct connection *connection)
{
    for (;;) {
        if (!connection->pending) {
            ssize_t count = read(connection->fd, connection->kept, CHUNK);
            if (count <= 0) return count < 0 && errno == EAGAIN;
            connection->pending = count;
            connection->offset = 0;
        }
        ssize_t count = write(connection->fd, connection->kept + connection->offset, connection->pending);
        if (count < 0) {
            if (errno != EAGAIN) return false;
            watch(EPOLL_CTL_MOD, connection, EPOLLOUT);
            return true;
        }
        connection->offset += count;
        connection->pending -= count;
        if (!connection->pending) {
            watch(EPOLL_CTL_MOD, connection, EPOLLIN);
            return true;
        }
    }
}

static bool serve_one(struct connection *connection)
{
    if (!connection->service) {
        ssize_t count = read(connection->fd, &connection->service, 1);
        if (count <= 0) return count < 0 && errno == EAGAIN;
        if (connection->service == ECHO) connection->kept = malloc(CHUNK);
        if (connection->service == SOURCE) watch(EPOLL_CTL_MOD, connection, EPOLLOUT);
        return true;
    }
    ssize_t count;
    switch (connection->service) {
    case ECHO:
        return echo(connection);
    case SOURCE:
        count = write(connection->fd, chunk, CHUNK);
        return count > 0 || errno == EAGAIN;
    default:
        count = read(connection->fd, chunk, CHUNK);
        if (count > 0) connection->received += count;
        if (count == 0) (void)!write(connection->fd, &connection->received, sizeof connection->received);
        return count > 0 || (count < 0 && errno == EAGAIN);
    }
}

static _Noreturn void serve(int port)
{
    struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    set(listener, SOL_SOCKET, SO_REUSEADDR, 1);
    set(listener, IPPROTO_TCP, TCP_NODELAY, 1);
    if (bind(listener, (void *)&any, sizeof any) || listen(listener, 4096)) fail("listen");
    struct epoll_event events[256] = { { .events = EPOLLIN } };
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, events)) fail("epoll_ctl");
    for (;;) {
        int count = epoll_wait(poller, events, 256, -1);
        for (int index = 0; index < count; index++) {
            struct connection *connection = events[index].data.ptr;
            if (connection) {
                if (!serve_one(connection)) forget(connection);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0) continue;
            connection = calloc(1, sizeof *connection);
            connection->fd = fd;
            watch(EPOLL_CTL_ADD, connection, EPOLLIN);
        }
    }
}

// ------------------------------------------------------------------------------------------------ clients

static struct sockaddr_storage server;
static socklen_t server_length;
static struct connection all[MOST];
static float *latencies;
static size_t latency_count, latency_room;

static void note(double seconds)
{
    if (latency_count == latency_room) {
        latency_room = latency_room ? 2 * latency_room : 1 << 20;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
    }
    latencies[latency_count++] = seconds * 1e6;
}

static int by_value(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static int report(uint64_t operations, uint64_t octets, double seconds)
{
    qsort(latencies, latency_count, sizeof *latencies, by_value);
    printf("{\"operations\": %lu, \"octets\": %lu, \"seconds\": %.6f", operations, octets, seconds);
    if (latency_count)
        printf(", \"p50\": %.1f, \"p99\": %.1f", latencies[latency_count / 2], latencies[latency_count * 99 / 100]);
    printf("}\n");
    return 0;
}

static void open_one(struct connection *connection, char service, int mss)
{
    connection->fd = socket(server.ss_family, SOCK_STREAM, 0);
    set(connection->fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (mss) {
        set(connection->fd, IPPROTO_TCP, TCP_MAXSEG, mss);
        set(connection->fd, SOL_SOCKET, SO_SNDBUF, 1 << 17);
    }
    if (connect(connection->fd, (void *)&server, server_length)) fail("connect");
    if (write(connection->fd, &service, 1) != 1) fail("write");
}

static int bulk(int streams, double seconds, bool up, int mss)
{
    for (int index = 0; index < streams; index++) {
        open_one(&all[index], up ? SINK : SOURCE, mss);
        watch(EPOLL_CTL_ADD, &all[index], up ? EPOLLOUT : EPOLLIN);
    }
    struct epoll_event events[64];
    uint64_t octets = 0;
    double start = now(), end = start + seconds;
    while (now() < end) {
        int count = epoll_wait(poller, events, 64, 100);
        for (int index = 0; index < count; index++) {
            struct connection *connection = events[index].data.ptr;
            ssize_t done = up ? send(connection->fd, chunk, mss ? 16384 : CHUNK, MSG_DONTWAIT)
                              : recv(connection->fd, chunk, CHUNK, MSG_DONTWAIT);
            if (done == 0 || (done < 0 && errno != EAGAIN)) fail("bulk");
            if (done > 0) octets += done;
        }
    }
    if (up) {
        // What the server has got counts, not what has been handed to the kernel.
        octets = 0;
        for (int index = 0; index < streams; index++) {
            uint64_t received = 0;
            shutdown(all[index].fd, SHUT_WR);
            if (recv(all[index].fd, &received, sizeof received, MSG_WAITALL) != sizeof received) fail("count");
            octets += received;
        }
    }
    // Timestamps take 12 of the octets that MSS allows.
    return report(mss ? octets / (mss - 12) : octets, octets, now() - start);
}

static int ping_pong(int count, double seconds, size_t size)
{
    for (int index = 0; index < count; index++) {
        open_one(&all[index], ECHO, 0);
        watch(EPOLL_CTL_ADD, &all[index], EPOLLIN);
    }
    double start = now(), end = start + seconds;
    for (int index = 0; index < count; index++) {
        all[index].since = now();
        if (write(all[index].fd, chunk, size) != (ssize_t)size) fail("write");
    }
    struct epoll_event events[256];
    while (now() < end) {
        int ready = epoll_wait(poller, events, 256, 100);
        for (int index = 0; index < ready; index++) {
            struct connection *connection = events[index].data.ptr;
            ssize_t done = read(connection->fd, chunk, size - connection->received);
            if (done <= 0) fail("read");
            connection->received += done;
            if (connection->received < size) continue;
            connection->received = 0;
            double time = now();
            note(time - connection->since);
            connection->since = time;
            if (write(connection->fd, chunk, size) != (ssize_t)size) fail("write");
        }
    }
    return report(latency_count, latency_count * size, now() - start);
}

static void dial(struct connection *connection)
{
    struct linger reset = { .l_onoff = 1 };
    connection->since = now();
    connection->fd = socket(server.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(connection->fd, (void *)&server, server_length) && errno != EINPROGRESS) fail("connect");
    watch(EPOLL_CTL_ADD, connection, EPOLLOUT);
}

static int connect_rate(int parallel, double seconds)
{
    double start = now(), end = start + seconds;
    for (int index = 0; index < parallel; index++) dial(&all[index]);
    struct epoll_event events[256];
    while (now() < end) {
        int ready = epoll_wait(poller, events, 256, 100);
        for (int index = 0; index < ready; index++) {
            struct connection *connection = events[index].data.ptr;
            int error = 0;
            socklen_t length = sizeof error;
            getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
            if (error) {
                errno = error;
                fail("connect");
            }
            note(now() - connection->since);
            close(connection->fd);
            dial(connection);
        }
    }
    return report(latency_count, 0, now() - start);
}

// Octet `index` of a stream: a hash of its place, so that a shifted or repeated part cannot look right.
static uint8_t pattern(uint64_t stream, uint64_t index)
{
    uint64_t value = (index + (stream << 48)) * 0x9e3779b97f4a7c15;
    return (value ^ value >> 29) * 0xbf58476d1ce4e5b9 >> 56;
}

static int verify(int streams, uint64_t octets)
{
    double start = now(), end = start + 30;
    int open = streams;
    for (int index = 0; index < streams; index++) {
        open_one(&all[index], ECHO, 0);
        watch(EPOLL_CTL_ADD, &all[index], EPOLLIN | EPOLLOUT);
    }
    struct epoll_event events[64];
    while (open && now() < end) {
        int ready = epoll_wait(poller, events, 64, 100);
        for (int index = 0; index < ready; index++) {
            struct connection *connection = events[index].data.ptr;
            uint64_t stream = connection - all;
            if (events[index].events & EPOLLIN) {
                ssize_t done = recv(connection->fd, chunk, CHUNK, MSG_DONTWAIT);
                if (done == 0 || (done < 0 && errno != EAGAIN)) fail("recv");
                for (ssize_t at = 0; at < done; at++)
                    if (chunk[at] != pattern(stream, connection->received + at)) {
                        fprintf(stderr, "octet %lu of stream %lu is wrong\n", connection->received + at, stream);
                        return 1;
                    }
                if (done > 0) connection->received += done;
                if (connection->received == octets) {
                    epoll_ctl(poller, EPOLL_CTL_DEL, connection->fd, NULL);
                    open--;
                }
            }
            // Writes of all lengths; no more under way than both ends' buffers hold.
            if (events[index].events & EPOLLOUT && connection->sent < octets
                && connection->sent - connection->received < 200000) {
                size_t length = 1 + (connection->sent * 2654435761u >> 7) % 70000;
                if (length > octets - connection->sent) length = octets - connection->sent;
                for (size_t at = 0; at < length; at++) chunk[at] = pattern(stream, connection->sent + at);
                ssize_t done = send(connection->fd, chunk, length, MSG_DONTWAIT);
                if (done < 0 && errno != EAGAIN) fail("send");
                if (done > 0) connection->sent += done;
            }
        }
    }
    if (open) {
        fprintf(stderr, "%d of %d streams have stalled\n", open, streams);
        return 1;
    }
    return report(streams, streams * octets, now() - start);
}

static void look_up(const char *address, int port)
{
    struct sockaddr_in *v4 = (void *)&server;
    struct sockaddr_in6 *v6 = (void *)&server;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        server_length = sizeof *v4;
    } else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        server_length = sizeof *v6;
    } else {
        fprintf(stderr, "%s is no address\n", address);
        exit(2);
    }
}

int main(int count, char **words)
{
    struct rlimit files = { 65536, 65536 };
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    const char *what = count > 1 ? words[1] : "";
    if (count == 3 && !strcmp(what, "serve")) serve(atoi(words[2]));
    if (count >= 6) {
        look_up(words[2], atoi(words[3]));
        int number = atoi(words[4]);
        if (number < 1 || number > MOST) return 2;
        if (count == 7 && !strcmp(what, "bulk")) return bulk(number, atof(words[5]), !strcmp(words[6], "up"), 0);
        if (count == 7 && !strcmp(what, "segments")) return bulk(number, atof(words[5]), true, atoi(words[6]));
        if (count == 7 && !strcmp(what, "pingpong")) return ping_pong(number, atof(words[5]), atoi(words[6]));
        if (count == 6 && !strcmp(what, "connect")) return connect_rate(number, atof(words[5]));
        if (count == 6 && !strcmp(what, "verify")) return verify(number, strtoull(words[5], NULL, 10));
    }
    fprintf(stderr, "usage: see the beginning of load.c\n");
    return 2;
}
