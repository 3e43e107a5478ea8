// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import Glibc
import Wire

/// What arrives at a gateway, seen before any packet filter drops it (AF_PACKET).
final class Capture {
    private let descriptor: Int32

    init(_ lab: Lab) throws {
        descriptor = try lab.inside(.gateway) {
            socket(AF_PACKET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), Int32(UInt16(0x0003).bigEndian))
        }
        var size: Int32 = 8 << 20
        setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &size, 4)
    }

    deinit { close(descriptor) }

    /// The next TCP segment that came in until `deadline` (in `CLOCK_MONOTONIC` nanoseconds); nil when none did.
    func next(until deadline: UInt64) -> ObservedSegment? {
        var packet = [UInt8](repeating: 0, count: 65_536)
        while true {
            var poller = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let now = Self.now
            let wait = deadline > now ? Int32(clamping: (deadline - now + 999_999) / 1_000_000) : 0
            guard poll(&poller, 1, wait) > 0 else { return nil }
            var from = sockaddr_storage()
            var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
            let capacity = packet.count
            let count = withUnsafeMutablePointer(to: &from) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    recvfrom(descriptor, &packet, capacity, Int32(MSG_DONTWAIT), $0, &length)
                }
            }
            guard count > 0 else { continue }
            // struct sockaddr_ll: family 2, protocol 2, interface 4, hardware 2, packet type 1; 4 is PACKET_OUTGOING.
            let packetType = withUnsafeBytes(of: &from) { $0[10] }
            if packetType != 4, let segment = Self.segment(packet[0..<count]) { return segment }
        }
    }

    static var now: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }

    /// Reads plain IPv4 and IPv6 TCP segments, independently of the code under test.
    private static func segment(_ packet: ArraySlice<UInt8>) -> ObservedSegment? {
        func number(_ offset: Int, _ count: Int) -> UInt32 {
            packet[offset..<offset + count].reduce(0) { $0 << 8 | UInt32($1) }
        }
        guard packet.count >= 40 else { return nil }
        let isIPv4 = packet[0] >> 4 == 4
        let header = isIPv4 ? Int(packet[0] & 15) * 4 : 40
        guard packet[isIPv4 ? 9 : 6] == 6, packet.count >= header + 20,
            let source = IPAddress(octets: packet[isIPv4 ? 12..<16 : 8..<24]),
            let destination = IPAddress(octets: packet[isIPv4 ? 16..<20 : 24..<40])
        else { return nil }
        let total = isIPv4 ? Int(number(2, 2)) : 40 + Int(number(4, 2))
        let offset = Int(packet[header + 12] >> 4) * 4
        var timestamps: TCPTimestamps?
        var option = header + 20
        while option < header + offset, packet[option] != 0 {
            if packet[option] == 1 {
                option += 1
                continue
            }
            if packet[option] == 8 {
                timestamps = TCPTimestamps(value: number(option + 2, 4), echoReply: number(option + 6, 4))
            }
            option += max(2, Int(packet[option + 1]))
        }
        return ObservedSegment(
            tuple: FourTuple(
                source: Endpoint(address: source, port: UInt16(number(header, 2))),
                destination: Endpoint(address: destination, port: UInt16(number(header + 2, 2)))),
            sequence: SequenceNumber(number(header + 4, 4)), acknowledgement: SequenceNumber(number(header + 8, 4)),
            flags: TCPFlags(rawValue: packet[header + 13] & 0x3f), window: UInt16(number(header + 14, 2)),
            payloadLength: UInt32(max(0, total - header - offset)), timestamps: timestamps)
    }
}
