// SPDX-License-Identifier: GPL-3.0-or-later
//
// What both C programs of the benchmark do to a packet. One rule is enough for a benchmark, and finding it costs a
// comparison: in the programs' favour.
#pragma once

#include <arpa/inet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct endpoint {
    uint32_t address;   // both in network byte order
    uint16_t port;
};

// Packets to `home` go to `host`, packets from `host` come from `home`.
struct rule {
    struct endpoint home, host;
};

static bool parse_endpoint(const char *text, struct endpoint *endpoint)
{
    char address[64];
    unsigned port;
    if (sscanf(text, "%63[0-9.]:%u", address, &port) != 2) return false;
    endpoint->port = htons(port);
    return inet_pton(AF_INET, address, &endpoint->address) == 1;
}

static inline uint16_t folded(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

// RFC 1071; words of 32 bits in 64-bit lanes, which the compiler vectorises.
static inline uint64_t sum_of(const uint8_t *octets, size_t length)
{
    uint64_t sum = 0;
    size_t at = 0;
    uint32_t word = 0;
    for (; at + 4 <= length; at += 4) {
        memcpy(&word, octets + at, 4);
        sum += word;
    }
    word = 0;
    memcpy(&word, octets + at, length - at);
    return sum + word;
}

// RFC 1624, equation 3.
static inline uint16_t adjusted(uint16_t checksum, uint64_t removed, uint64_t added)
{
    return ~folded((uint64_t)(uint16_t)~checksum + removed + added);
}

enum way { ELSEWHERE, TO_HOST, TO_CLIENT };

// Which way a packet goes that the rule covers, by its headers alone.
static inline enum way covered(const struct rule *rule, const uint8_t *packet, size_t length)
{
    const struct iphdr *ip = (const void *)packet;
    size_t offset = ip->ihl * 4;
    if (length < 40 || ip->version != 4 || ip->protocol != IPPROTO_TCP || ip->frag_off & htons(0x3fff) || offset < 20
        || length < offset + 20)
        return ELSEWHERE;
    const struct tcphdr *tcp = (const void *)(packet + offset);
    if (ip->daddr == rule->home.address && tcp->dest == rule->home.port) return TO_HOST;
    if (ip->saddr == rule->host.address && tcp->source == rule->host.port) return TO_CLIENT;
    return ELSEWHERE;
}

enum sum { INCREMENTAL, FULL, UNTOUCHED };

// Whether the rule covers the packet, which then has been rewritten.
static inline bool apply(const struct rule *rule, uint8_t *packet, size_t length, enum sum sum)
{
    enum way way = covered(rule, packet, length);
    struct iphdr *ip = (void *)packet;
    if (way == ELSEWHERE || ntohs(ip->tot_len) > length) return false;
    size_t offset = ip->ihl * 4;
    struct tcphdr *tcp = (void *)(packet + offset);
    uint32_t *address = way == TO_HOST ? &ip->daddr : &ip->saddr;
    uint16_t *port = way == TO_HOST ? &tcp->dest : &tcp->source;
    const struct endpoint *to = way == TO_HOST ? &rule->host : &rule->home;
    uint64_t removed = (uint64_t)(uint32_t)~*address;
    ip->check = adjusted(ip->check, removed, to->address);
    if (sum == INCREMENTAL) tcp->check = adjusted(tcp->check, removed + (uint16_t)~*port, (uint64_t)to->address + to->port);
    *address = to->address;
    *port = to->port;
    if (sum == FULL) {
        size_t whole = ntohs(ip->tot_len) - offset;
        tcp->check = 0;
        tcp->check = ~folded(
            (uint64_t)ip->saddr + ip->daddr + htons(IPPROTO_TCP) + htons(whole) + sum_of(packet + offset, whole));
    }
    return true;
}
