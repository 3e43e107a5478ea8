// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation

/// A client and a host with this thread's namespace as the gateway between them, and a way to send single packets and
/// see what arrives.
///
///     client 198.18.1.2 ── 198.18.1.1 [gateway] 198.18.2.1 ── host 198.18.2.6 (home), 198.18.2.7 (to-host)
///     2001:db8:1::2                                           2001:db8:2::6, 2001:db8:2::7
struct NetfilterTableWire {
    private let client: String
    private let host: String

    /// Makes the two namespaces; `remove` must be called.
    init() throws {
        let tag = "\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        client = "nfqmig-c-\(tag)"
        host = "nfqmig-h-\(tag)"
        let script = """
            set -e
            ip link set lo up
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
            end() { # namespace, interface here, net, addresses there
                ip netns add "$1"
                ip netns exec "$1" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
                ip link add "$2" type veth peer name e netns "$1"
                ip addr add 198.18.$3.1/24 dev "$2"
                ip addr add 2001:db8:$3::1/64 dev "$2" nodad
                ip link set "$2" up
                ip -n "$1" link set e up
                for n in $4; do
                    ip -n "$1" addr add 198.18.$3.$n/24 dev e
                    ip -n "$1" addr add 2001:db8:$3::$n/64 dev e nodad
                done
                ip -n "$1" route add default via 198.18.$3.1
                ip -n "$1" route add default via 2001:db8:$3::1
            }
            end \(client) toc 1 2
            end \(host) toh 2 "6 7"
            """
        do {
            try NetfilterTableLab.shell(script)
        } catch {
            remove()
            throw error
        }
    }

    func remove() { _ = try? NetfilterTableLab.shell("ip netns del \(client); ip netns del \(host)") }

    /// Sends packets, written as `client 198.18.1.2:5000>198.18.2.6:443 A seq ack` or `client 198.18.1.2>198.18.2.6
    /// unreachable`, and returns what arrives at both ends within half a second, written the same way.
    func send(_ packets: String...) throws -> [String] {
        try NetfilterTableLab.shell(
            "/usr/bin/python3 -c \"$SCRIPT\" \(client) \(host)", input: packets.joined(separator: "\n") + "\n",
            environment: "SCRIPT=" + Self.script
        ).split(separator: "\n").map(String.init)
    }

    private static let script = #"""
        import ctypes, os, select, socket, struct, sys, time
        libc = ctypes.CDLL(None)
        flags = "FSRPA"
        def enter(name):
            descriptor = os.open("/run/netns/" + name, os.O_RDONLY)
            if libc.setns(descriptor, 0x40000000): sys.exit("setns")
            os.close(descriptor)
        def sum16(data):
            data += b"\0" * (len(data) % 2)
            s = sum(struct.unpack("!%dH" % (len(data) // 2), data))
            while s >> 16: s = (s & 0xffff) + (s >> 16)
            return ~s & 0xffff
        def packed(text): return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
        def packet(src, dst, protocol, payload, checksum_at):
            src, dst = packed(src), packed(dst)
            pseudo = src + dst + struct.pack("!LL", len(payload), protocol)
            if protocol == 1: pseudo = b""
            check = struct.pack("!H", sum16(pseudo + payload))
            payload = payload[:checksum_at] + check + payload[checksum_at + 2:]
            if len(src) == 16: return struct.pack("!LHBB", 6 << 28, len(payload), protocol, 64) + src + dst + payload
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + src + dst
            return head[:10] + struct.pack("!H", sum16(head)) + head[12:] + payload
        def split(text):
            address, port = text.rsplit(":", 1)
            return address.strip("[]"), int(port)
        def build(words):
            src, dst = words[0].split(">")
            if words[1] == "unreachable":
                six = ":" in dst
                icmp = struct.pack("!BBHL", 1 if six else 3, 1, 0, 0) + bytes(48)
                return dst, packet(src, dst, 58 if six else 1, icmp, 2)
            if words[1] == "echo":
                six = ":" in dst
                return dst, packet(src, dst, 58 if six else 1, struct.pack("!BBHHH", 128 if six else 8, 0, 0, 1, 1), 2)
            (src, sport), (dst, dport) = split(src), split(dst)
            bits = sum(1 << (4 if f == "A" else flags.index(f)) for f in words[1])
            tcp = struct.pack("!HHLLBBHHH", sport, dport, int(words[2]), int(words[3]), 0x50, bits, 1000, 0, 0)
            return dst, packet(src, dst, 6, tcp, 16)
        def describe(data):
            if data[0] >> 4 == 4:
                protocol, src, dst, rest = data[9], data[12:16], data[16:20], data[(data[0] & 15) * 4:]
            else:
                protocol, src, dst, rest = data[6], data[8:24], data[24:40], data[40:]
            family = socket.AF_INET if len(src) == 4 else socket.AF_INET6
            src, dst = socket.inet_ntop(family, src), socket.inet_ntop(family, dst)
            if protocol == 6:
                sport, dport, seq, ack = struct.unpack("!HHLL", rest[:12])
                if family == socket.AF_INET6: src, dst = "[%s]" % src, "[%s]" % dst
                shown = "".join(f for i, f in enumerate(flags) if rest[13] >> i & 1)
                return "%s:%d>%s:%d %s %d %d" % (src, sport, dst, dport, shown, seq, ack)
            if protocol in (1, 58):
                names = {3: "unreachable", 8: "echo"} if protocol == 1 else {1: "unreachable", 128: "echo"}
                if rest[0] in names: return "%s>%s %s" % (src, dst, names[rest[0]])
        ends = {}
        for name, namespace in zip(("client", "host"), sys.argv[1:]):
            enter(namespace)
            four = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            seen = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            ends[name] = four, six, seen
        for line in sys.stdin.read().splitlines():
            end, *words = line.split()
            to, data = build(words)
            ends[end][":" in to].sendto(data, (to, 0))
            time.sleep(0.01)
        limit = time.time() + 0.5
        while time.time() < limit:
            for name, (_, _, seen) in ends.items():
                while select.select([seen], [], [], 0.02)[0]:
                    data, source = seen.recvfrom(65536)
                    if source[2] != 4 and source[1] in (0x800, 0x86dd):
                        text = describe(data)
                        if text: print(name, text)
        """#
}
