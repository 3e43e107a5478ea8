# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures in the lab's namespaces, and what they say.

A segment that an end point sent leaves with TTL (hop limit) 64 and arrives behind the gateway with 63; one that the
gateway itself made arrives with 64. So a capture tells a forwarded segment from a spoofed one.
"""

import ipaddress
import os
import signal
import struct
import subprocess
import time
import zlib

from lab import LabError, run

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def sums_to_zero(octets):
    """Whether the Internet checksum (RFC 1071) over these octets is right: their ones' complement sum is minus zero.

    65536 is 1 modulo 65535, so that the whole string modulo 65535 is that sum.
    """
    if len(octets) & 1:
        octets += b"\0"
    return any(octets) and int.from_bytes(octets, "big") % 65535 == 0


class Segment:
    """One captured TCP segment: addresses and ports as text and numbers, `at` in seconds since 1970, `good`: both
    checksums are right."""

    __slots__ = ("at", "source", "sport", "destination", "dport", "ttl", "seq", "ack", "flags", "window", "length",
                 "digest", "timestamp", "good", "octets")

    def __init__(self, at, packet):
        self.at = at
        if packet[0] >> 4 == 4:
            start, end = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
            self.ttl, addresses = packet[8], packet[12:20]
            self.good = sums_to_zero(packet[:start])
        else:
            start, end = 40, 40 + struct.unpack_from("!H", packet, 4)[0]
            self.ttl, addresses = packet[7], packet[8:40]
            self.good = True
        half = len(addresses) // 2
        self.source, self.destination = text(addresses[:half]), text(addresses[half:])
        segment = packet[start:end]
        self.octets = end
        (self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.window) = struct.unpack_from(
            "!HHIIBBH", segment)
        offset = (offset >> 4) * 4
        self.length = len(segment) - offset
        self.digest = zlib.crc32(segment[offset:])
        self.timestamp = option(segment[20:offset], 8)
        self.good = self.good and sums_to_zero(addresses + struct.pack("!II", len(segment), 6) + segment)

    def same(self, other):
        """Whether this is the other one after a translation of addresses and ports."""
        return (self.seq, self.ack, self.flags, self.length, self.digest, self.timestamp) == (
            other.seq, other.ack, other.flags, other.length, other.digest, other.timestamp)

    def __str__(self):
        marks = "".join(letter for bit, letter in ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "."))
                        if self.flags & bit)
        return "%.6f %s.%d > %s.%d [%s] seq %d ack %d len %d ttl %d%s" % (
            self.at, self.source, self.sport, self.destination, self.dport, marks, self.seq, self.ack, self.length,
            self.ttl, "" if self.good else " BAD CHECKSUM")


NAMES = {}


def text(octets):
    if octets not in NAMES:
        NAMES[octets] = str(ipaddress.ip_address(octets))
    return NAMES[octets]


def option(octets, kind):
    """A TCP option's data, or None."""
    while octets and octets[0]:
        if octets[0] == 1:
            octets = octets[1:]
            continue
        if len(octets) < 2 or octets[1] < 2:
            return None
        if octets[0] == kind:
            return octets[2:octets[1]]
        octets = octets[octets[1]:]
    return None


def segments(path):
    """The TCP segments of a pcap file (nanoseconds or microseconds, Ethernet), in order. Fragments are left out."""
    with open(path, "rb") as file:
        head = file.read(24)
        if len(head) < 24:
            return
        magic = head[:4]
        order = "<" if magic in (b"\x4d\x3c\xb2\xa1", b"\xd4\xc3\xb2\xa1") else ">"
        fraction = 1e-9 if magic in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d") else 1e-6
        record = struct.Struct(order + "IIII")
        while True:
            head = file.read(16)
            if len(head) < 16:
                return
            seconds, parts, stored, original = record.unpack(head)
            frame = file.read(stored)
            if len(frame) < stored:
                return
            kind, packet = frame[12:14], frame[14:]
            if stored < original:
                raise LabError("%s: a packet was not captured whole" % path)
            if kind == b"\x08\x00" and packet[9] == 6 and not packet[6] & 0x3F and not packet[7]:
                yield Segment(seconds + parts * fraction, packet)
            elif kind == b"\x86\xdd" and packet[6] == 6:
                yield Segment(seconds + parts * fraction, packet)


class Capture:
    """tcpdump on one host's link while the `with` block lasts."""

    def __init__(self, lab, host, device="eth0", expression="tcp or icmp or icmp6", name=None):
        self.lab, self.host, self.device, self.expression = lab, host, device, expression
        self.path = lab.path("%s.pcap" % (name or "%s-%s-%d" % (host, device, len(os.listdir(lab.directory)))))
        self.child = None

    def __enter__(self):
        # An own buffer of 64 MiB: what tcpdump cannot write in time it must not lose.
        self.child = self.lab.spawn(self.host, [
            "tcpdump", "-i", self.device, "-n", "-s", "0", "-B", "65536", "-Z", "root", "--immediate-mode",
            "--time-stamp-precision=nano", "-U", "-w", self.path, self.expression], stderr=subprocess.PIPE)
        line = self.child.stderr.readline()
        while line and b"listening on" not in line:
            line = self.child.stderr.readline()
        if not line:
            raise LabError("tcpdump did not start on " + self.host)
        return self

    def __exit__(self, *_):
        time.sleep(0.05)
        self.child.send_signal(signal.SIGINT)
        report = self.child.stderr.read().decode()
        self.lab.stop(self.child)
        if "0 packets dropped by kernel" not in report:
            raise LabError("tcpdump on %s lost packets: %s" % (self.host, report))
        return False

    def segments(self, **wanted):
        """The captured TCP segments whose attributes have these values."""
        return [each for each in segments(self.path)
                if all(getattr(each, name) == value for name, value in wanted.items())]

    def bad_checksums(self):
        """Frames in which tshark finds a wrong IP or TCP checksum, one line each.

        A TCP checksum 0xffff where 0x0000 would do is not wrong: both are zero in ones' complement (RFC 1071), and Linux
        writes it itself whenever it completes a sum that comes to zero (skb_checksum_help, CSUM_MANGLED_0): one segment of 65,536.
        """
        return run(["tshark", "-n", "-r", self.path, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
                    "-Y", "(tcp.checksum.status == 0 && !tcp.checksum.ffff) || ip.checksum.status == 0"],
                   timeout=300).stdout.splitlines()

    def verified_checksums(self):
        """How many TCP checksums tshark has found right: zero would mean that it did not look."""
        return len(run(["tshark", "-n", "-r", self.path, "-o", "tcp.check_checksum:TRUE",
                        "-Y", "tcp.checksum.status == 1"], timeout=300).stdout.splitlines())
