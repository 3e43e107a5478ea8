#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the golden vectors (*.hex) beside this file with scapy, which knows nothing of our code.

Every packet is built twice, before and after the rewrite, each time with all checksums summed from scratch.
Deterministic: running it again changes nothing. Format: see VectorFile.swift in Tests/WireTests.
"""
import os
import struct
import sys

import scapy
from scapy.layers.inet import ICMP, IP, TCP, IPOption
from scapy.layers.inet6 import (
    IPv6, ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, PadN)
from scapy.layers.inet import UDP
from scapy.packet import Raw

HERE = os.path.dirname(os.path.abspath(__file__))

C4, A4, B4, R4 = "203.0.113.9", "198.51.100.6", "192.0.2.77", "198.18.0.1"
C6, A6, B6, R6 = "2001:db8:c::9", "2001:db8:a::6", "2001:db8:b::4d", "2001:db8:ffff::1"
CP, AP, BP = 49155, 80, 55000
TS = [("NOP", None), ("NOP", None), ("Timestamp", (0x01020304, 0xA0B0C0D0))]
SYN = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]


def annotate(octets):
    """Splits a packet at its header borders: [(octets, remark)]."""
    parts, at = [], 0

    def take(count, remark):
        nonlocal at
        count = min(count, len(octets) - at)
        for start in range(at, at + count, 16):
            parts.append((octets[start:min(start + 16, at + count)], remark if start == at else ""))
        at += count

    def network():
        version = octets[at] >> 4
        if version not in (4, 6) or len(octets) - at < (20 if version == 4 else 40):
            return None
        if version == 4:
            protocol, length = octets[at + 9], (octets[at] & 15) * 4
            later = struct.unpack_from(">H", octets, at + 6)[0] & 0x1FFF
            take(20, "IPv4")
            if length > 20:
                take(length - 20, "IPv4 options")
            return None if later else protocol
        protocol = octets[at + 6]
        take(40, "IPv6")
        names = {
            0: "hop-by-hop options", 43: "routing", 44: "fragment", 51: "authentication", 60: "destination options"}
        while protocol in names and at + 8 <= len(octets):
            size = (octets[at + 1] + 2) * 4 if protocol == 51 else 8 if protocol == 44 else (octets[at + 1] + 1) * 8
            later = protocol == 44 and struct.unpack_from(">H", octets, at + 2)[0] & 0xFFF8
            name, protocol = names[protocol], octets[at]
            take(size, name)
            if later:
                return None
        return protocol

    protocol = network()
    if protocol in (1, 58):
        error = octets[at] in ((3, 11, 12) if protocol == 1 else (1, 2, 3, 4))
        take(8, "ICMP" if protocol == 1 else "ICMPv6")
        if error:
            protocol = network()
    if protocol == 6 and at + 13 <= len(octets):
        length = (octets[at + 12] >> 4) * 4
        take(20, "TCP")
        take(max(0, length - 20), "TCP options")
    take(len(octets), "data")
    return parts


class Vectors:
    def __init__(self, name, about):
        self.name = name
        self.lines = [
            "# SPDX-License-Identifier: GPL-3.0-or-later",
            f"# {about}",
            f"# Provenance: Tests/Vectors/generate.py with scapy {scapy.__version__}; do not edit by hand.",
        ]

    def case(self, name, packets, **fields):
        self.lines += ["", f"case: {name}"]
        self.lines += [f"{key}: {value}" for key, value in fields.items()]
        for key, octets in packets.items():
            self.lines.append(f"{key}:")
            for part, remark in annotate(octets):
                self.lines.append(f"  {part.hex(' ')}".ljust(52) + (f"# {remark}" if remark else ""))
        self.lines = [line.rstrip() for line in self.lines]

    def write(self):
        with open(os.path.join(HERE, self.name), "w") as file:
            file.write("\n".join(self.lines) + "\n")


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def extensions(routing=True):
    headers = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]) / IPv6ExtHdrDestOpt(
        options=[PadN(optdata=b"\0" * 12)])
    if routing:
        headers = headers / IPv6ExtHdrRouting(type=2, segleft=0, addresses=["2001:db8::77"])
    return headers / IPv6ExtHdrFragment(id=9, offset=0, m=0)


def tcp_packet(version, src, sport, dst, dport, data=b"", flags="A", options=(), shape="plain"):
    tcp = TCP(sport=sport, dport=dport, seq=0x11223344, ack=0x55667788, flags=flags, window=502, options=list(options))
    if version == 4:
        ip = IP(src=src, dst=dst, id=0x1234, ttl=61, flags="DF")
        if shape == "options":
            ip.options = [IPOption(b"\x07\x07\x04\x00\x00\x00\x00"), IPOption(b"\x01")]
        return bytes(ip / tcp / Raw(data))
    ip = IPv6(src=src, dst=dst, hlim=61, fl=0x12345)
    if shape == "extensions":
        ip = ip / extensions()
    if shape == "long":
        ip = ip / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 68)])
    if shape == "authentication":
        # Next header TCP, length 4 (24 octets), SPI, sequence number, 12 octets of integrity check value. scapy sums
        # TCP without it; then it is put in between.
        plain = bytes(ip / tcp / Raw(data))
        header = bytes([6, 4, 0, 0]) + struct.pack(">II", 0x100, 1) + b"\xA5" * 12
        fixed = bytearray(plain[:40])
        fixed[6] = 51
        struct.pack_into(">H", fixed, 4, len(plain) - 40 + len(header))
        return bytes(fixed) + header + plain[40:]
    return bytes(ip / tcp / Raw(data))




# --- TCP

vectors = Vectors("tcp-rewrite.hex", "TCP segments before and after a rewrite of one endpoint.")
shapes = [
    (4, "plain", "ACK without data", dict()),
    (4, "plain", "odd number of data octets, timestamps", dict(data=b"migrate me!", flags="PA", options=TS)),
    (4, "plain", "SYN with the usual options", dict(flags="S", options=SYN)),
    (4, "options", "IPv4 options in front", dict(data=b"abcd", flags="PA")),
    (6, "plain", "ACK without data", dict()),
    (6, "plain", "odd number of data octets, timestamps", dict(data=b"migrate me!", flags="PA", options=TS)),
    (6, "extensions", "four extension headers", dict(data=b"abc", flags="PA", options=TS)),
    (6, "authentication", "authentication header", dict(data=b"abc", flags="PA")),
]
for version, shape, remark, fields in shapes:
    C, A, B = (C4, A4, B4) if version == 4 else (C6, A6, B6)
    vectors.case(
        f"IPv{version}, destination, {remark}",
        dict(before=tcp_packet(version, C, CP, A, AP, shape=shape, **fields),
             after=tcp_packet(version, C, CP, B, BP, shape=shape, **fields)),
        verb="destination", to=endpoint(B, BP), tuple=f"{endpoint(C, CP)} {endpoint(A, AP)}")
    vectors.case(
        f"IPv{version}, source, {remark}",
        dict(before=tcp_packet(version, B, BP, C, CP, shape=shape, **fields),
             after=tcp_packet(version, A, AP, C, CP, shape=shape, **fields)),
        verb="source", to=endpoint(A, AP), tuple=f"{endpoint(B, BP)} {endpoint(C, CP)}")


def checksum_of(version, octets):
    return struct.unpack_from(">H", octets, (20 if version == 4 else 40) + 16)[0]


# The corners of one's complement: a rewrite that ends, or begins, at checksum 0x0000 and 0xFFFE, found by trying words.
for version in (4, 6):
    C, A, B = (C4, A4, B4) if version == 4 else (C6, A6, B6)
    for wanted in (0x0000, 0x0001, 0xFFFE):
        for end in ("after", "before"):
            address, port = (B, BP) if end == "after" else (A, AP)
            zero = checksum_of(version, tcp_packet(version, C, CP, address, port, data=b"\0\0"))
            for word in range(0x10000):
                # ~(~zero + word) == wanted, in one's complement
                total = (~zero & 0xFFFF) + word
                if ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF == wanted:
                    break
            data = struct.pack(">H", word)
            packets = dict(before=tcp_packet(version, C, CP, A, AP, data=data),
                           after=tcp_packet(version, C, CP, B, BP, data=data))
            assert checksum_of(version, packets[end]) == wanted
            vectors.case(f"IPv{version}, checksum 0x{wanted:04x} {end}", packets, verb="destination",
                         to=endpoint(B, BP), tuple=f"{endpoint(C, CP)} {endpoint(A, AP)}")
vectors.write()

# --- ICMP errors

vectors = Vectors("icmp-rewrite.hex", "ICMP errors before and after a rewrite of the packet quoted in them.")


def error4(src, dst, quoted, type, code, shape="plain", **fields):
    ip = IP(src=src, dst=dst, id=0x4321, ttl=60)
    if shape == "options":
        ip.options = [IPOption(b"\x07\x07\x04\x00\x00\x00\x00"), IPOption(b"\x01")]
    if shape == "multi-part":
        # RFC 4884: the quotation padded to 128 octets, its length in 32-bit words, then an extension structure.
        quoted = quoted[:128].ljust(128, b"\0")
        structure = bytes.fromhex("2000 0000 0008 0101 0001 0001")
        return bytes(ip / ICMP(type=type, code=code, length=32) / Raw(quoted + structure))
    return bytes(ip / ICMP(type=type, code=code, **fields) / Raw(quoted))


def error6(src, dst, quoted, message, shape="plain"):
    if shape == "multi-part":
        # RFC 4884: the length in 64-bit words. What follows begins in the middle of the TCP header.
        message.length = 16
        quoted = quoted[:128] + bytes.fromhex("2000 0000 0008 0101 0001 0001")
    return bytes(IPv6(src=src, dst=dst, hlim=60) / message / Raw(quoted))


# Who sends the error, how much it quotes of TCP, what error it is.
errors = [
    (4, "R", 8, "host unreachable, eight octets of TCP", lambda s, d, q: error4(s, d, q, 3, 1)),
    (4, "R", 20, "fragmentation needed, whole TCP header", lambda s, d, q: error4(s, d, q, 3, 4, nexthopmtu=1400)),
    (4, "host", 18, "port unreachable from the host itself, up to the checksum", lambda s, d, q: error4(s, d, q, 3, 3)),
    (4, "R", 16, "time exceeded, up to the window", lambda s, d, q: error4(s, d, q, 11, 0)),
    (4, "R", 32, "parameter problem, IPv4 options on the error", lambda s, d, q: error4(s, d, q, 12, 0, "options")),
    (4, "R", 99, "time exceeded with extensions", lambda s, d, q: error4(s, d, q, 11, 0, "multi-part")),
    (6, "R", 99, "destination unreachable", lambda s, d, q: error6(s, d, q, ICMPv6DestUnreach(code=3))),
    (6, "R", 199, "destination unreachable with extensions",
     lambda s, d, q: error6(s, d, q, ICMPv6DestUnreach(code=3), "multi-part")),
    (6, "R", 99, "packet too big", lambda s, d, q: error6(s, d, q, ICMPv6PacketTooBig(mtu=1280))),
    (6, "host", 8, "time exceeded from the host itself, eight octets",
     lambda s, d, q: error6(s, d, q, ICMPv6TimeExceeded())),
    (6, "R", 20, "parameter problem", lambda s, d, q: error6(s, d, q, ICMPv6ParamProblem(code=1, ptr=6))),
]
for version, sender, octets, remark, build in errors:
    C, A, B, R = (C4, A4, B4, R4) if version == 4 else (C6, A6, B6, R6)
    head = 20 if version == 4 else 40
    data = b"0123456789" * 3

    def quote(src, sport, dst, dport):
        shape = "long" if octets == 199 else "plain"
        packet = tcp_packet(version, src, sport, dst, dport, data=data, flags="PA", options=TS, shape=shape)
        return packet[:head + octets]

    # Towards the home: about what the client saw (home -> client). It becomes an error towards the host.
    sender_address = R if sender == "R" else C
    vectors.case(
        f"IPv{version}, towards the home, {remark}",
        dict(before=build(sender_address, A, quote(A, AP, C, CP)),
             after=build(sender_address, B, quote(B, BP, C, CP))),
        verb="quoted-source", to=endpoint(B, BP), tuple=f"{endpoint(A, AP)} {endpoint(C, CP)}")
    # Towards the client: about client -> host. It becomes an error about client -> home.
    vectors.case(
        f"IPv{version}, towards the client, {remark}",
        dict(before=build(R if sender == "R" else B, C, quote(C, CP, B, BP)),
             after=build(R if sender == "R" else A, C, quote(C, CP, A, AP))),
        verb="quoted-destination", to=endpoint(A, AP), tuple=f"{endpoint(C, CP)} {endpoint(B, BP)}")
vectors.write()

# --- Segments that we emit

vectors = Vectors("encoding.hex", "Segments that the gateway emits itself.")
for version in (4, 6):
    C, A = (C4, A4) if version == 4 else (C6, A6)
    for remark, flags, data, stamps in [
            ("challenge", "A", 0, None), ("reset", "RA", 0, None), ("one octet of data", "A", 1, None),
            ("timestamps", "A", 1, (0xDEADBEEF, 0x01020304)), ("SYN", "S", 0, None)]:
        options = [("NOP", None), ("NOP", None), ("Timestamp", stamps)] if stamps else []
        tcp = TCP(sport=CP, dport=AP, seq=0xFFFFFFFF, ack=0x80000001, flags=flags, window=1024, options=options)
        ip = IP(src=C, dst=A, id=0, ttl=64, flags="DF") if version == 4 else IPv6(src=C, dst=A, hlim=64)
        vectors.case(
            f"IPv{version}, {remark}", dict(octets=bytes(ip / tcp / Raw(b"\0" * data))),
            tuple=f"{endpoint(C, CP)} {endpoint(A, AP)}", sequence=0xFFFFFFFF, acknowledgement=0x80000001,
            flags=int(tcp.flags), window=1024, data=data,
            timestamps=f"{stamps[0]} {stamps[1]}" if stamps else "none")
vectors.write()

# --- What is not a whole TCP segment

vectors = Vectors("recognition.hex", "Packets and what they are.")
plain4 = tcp_packet(4, C4, CP, A4, AP, data=b"x" * 40)
plain6 = tcp_packet(6, C6, CP, A6, AP, data=b"x" * 40)


def changed(octets, **at):
    octets = bytearray(octets)
    for place, value in at.items():
        octets[int(place[1:])] = value
    return bytes(octets)


first = bytes(IP(src=C4, dst=A4, id=7, flags="MF") / TCP(sport=CP, dport=AP) / Raw(b"x" * 36))
later = bytes(IP(src=C4, dst=A4, id=7, frag=7, proto=6) / Raw(b"x" * 36))
tiny = bytes(IP(src=C4, dst=A4, id=7, flags="MF", proto=6) / Raw(b"x" * 8))
first6 = bytes(IPv6(src=C6, dst=A6) / IPv6ExtHdrFragment(id=1, m=1) / TCP(sport=CP, dport=AP) / Raw(b"x" * 36))
later6 = bytes(IPv6(src=C6, dst=A6) / IPv6ExtHdrFragment(id=1, offset=7, m=0, nh=6) / Raw(b"x" * 36))
later6_options = bytes(IPv6(src=C6, dst=A6) / IPv6ExtHdrFragment(id=1, offset=7, m=0, nh=60) / Raw(b"\xff" * 36))
cut_options = bytes(IPv6(src=C6, dst=A6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 20)]) / UDP(dport=53))[:56]
udp_error = bytes(IP(src=R4, dst=C4) / ICMP(type=3, code=3) / Raw(bytes(IP(src=C4, dst=A4) / UDP(dport=53))))
later_error = bytes(IP(src=R4, dst=C4) / ICMP(type=11, code=1) / Raw(later[:40]))
routed = bytes(IPv6(src=C6, dst=A6) / IPv6ExtHdrRouting(type=2, segleft=1, addresses=[B6]) / TCP(sport=CP, dport=AP))
nine = IPv6(src=C6, dst=A6)
eight = IPv6(src=C6, dst=A6)
for index in range(9):
    nine = nine / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
    eight = eight / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) if index < 8 else eight
for name, octets, kind in [
        ("IPv4, TCP", plain4, "tcp"),
        ("IPv6, TCP", plain6, "tcp"),
        ("IPv6, eight extension headers", bytes(eight / TCP(sport=CP, dport=AP)), "tcp"),
        ("IPv4, first fragment", first, "first fragment"),
        ("IPv4, later fragment", later, "fragment"),
        ("IPv6, first fragment", first6, "first fragment"),
        ("IPv6, later fragment", later6, "fragment"),
        ("IPv6, later fragment with something like options in it", later6_options, "fragment"),
        ("IPv4, UDP", bytes(IP(src=C4, dst=A4) / UDP(dport=53)), "other"),
        ("IPv4, echo request", bytes(IP(src=C4, dst=A4) / ICMP()), "other"),
        ("IPv6, echo request", bytes(IPv6(src=C6, dst=A6) / ICMPv6EchoRequest()), "other"),
        ("IPv4, error about UDP", udp_error, "other"),
        ("IPv4, error about a later fragment", later_error, "other"),
        ("IPv4, error with four octets of TCP",
         bytes(IP(src=R4, dst=C4) / ICMP(type=3, code=1) / Raw(plain4[:24])), "other"),
        ("IPv6, routing header with a segment left", routed, "other"),
        ("IPv4, nothing but a version", b"\x45", "malformed truncated"),
        ("IPv4, header length 16", changed(plain4, o0=0x44), "malformed badHeaderLength"),
        ("IPv4, total length 19", changed(plain4, o2=0, o3=19), "malformed badTotalLength"),
        ("IPv4, total length without room for TCP", changed(plain4, o2=0, o3=39), "malformed badTotalLength"),
        ("IPv4, a TCP header of 8 octets in a whole datagram", changed(tiny, o6=0), "malformed badTotalLength"),
        ("IPv4, data offset 16", changed(plain4, o32=0x40), "malformed badDataOffset"),
        ("IPv4, options beyond the segment", changed(plain4[:44], o2=0, o3=44, o32=0xF0), "malformed badDataOffset"),
        ("IPv4, copy that ends in the TCP header", plain4[:39], "malformed truncated"),
        ("IPv6, copy that ends in the IPv6 header", plain6[:39], "malformed truncated"),
        ("IPv6, copy that ends in an extension header", cut_options, "malformed truncated"),
        ("IPv6, extension header beyond the payload",
         changed(tcp_packet(6, C6, CP, A6, AP, shape="extensions"), o41=0xFF), "malformed badTotalLength"),
        ("IPv6, nine extension headers", bytes(nine / TCP(sport=CP, dport=AP)), "malformed tooManyExtensionHeaders"),
        ("version 5", changed(plain4, o0=0x55), "malformed unknownVersion"),
]:
    vectors.case(name, dict(octets=octets), kind=kind)
vectors.write()
print("written with scapy", scapy.__version__, file=sys.stderr)
