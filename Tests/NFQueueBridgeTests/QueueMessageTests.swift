// SPDX-License-Identifier: GPL-3.0-or-later

import NFQueueBridge
import Testing
import Wire

struct QueueMessageTests {
    /// A packet message as kernel 6.18 sent it for a UDP datagram of two octets (the header's numbers in host order).
    private static let message: [UInt8] =
        word(0) + half(0x0300) + half(0) + word(0) + word(0)  // nlmsghdr; `sized` sets the length
        + [2, 0, 0, 7]  // nfgenmsg: AF_INET, version 0, queue 7
        + half(11) + half(1) + [0, 0, 1, 2, 8, 0, 4, 0]  // NFQA_PACKET_HDR: number 258, IPv4, hook POST_ROUTING
        + half(8) + half(3) + [0, 0, 0, 9]  // NFQA_MARK 9
        + half(8) + half(14) + [0, 0, 0, 1]  // NFQA_SKB_INFO: CSUMNOTREADY
        + half(8) + half(13) + [0, 0, 0, 5]  // NFQA_CAP_LEN 5
        + half(9) + half(10) + [0x45, 1, 2, 3, 4]  // NFQA_PAYLOAD of 5 octets, not padded at the end

    private static func half(_ value: UInt16) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }
    private static func word(_ value: UInt32) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }

    /// `octets` with their number as the message's length.
    private static func sized(_ octets: [UInt8]) -> [UInt8] { word(UInt32(octets.count)) + octets.dropFirst(4) }

    private func read(_ octets: [UInt8]) -> QueueMessage { QueueMessage(octets.span) }

    @Test func `a packet's message gives number, hook, mark, checksum state and octets`() {
        let metadata = PacketMetadata(hook: 4, checksum: .pending, mark: 9, isWhole: true, number: 258)
        #expect(read(Self.sized(Self.message)) == .packet(number: 258, payload: 60..<65, length: 5, metadata))
    }

    @Test func `a packet shorter than on the wire is not whole`() {
        var octets = Self.sized(Self.message)
        octets[55] = 6
        let metadata = PacketMetadata(hook: 4, checksum: .pending, mark: 9, isWhole: false, number: 258)
        #expect(read(octets) == .packet(number: 258, payload: 60..<65, length: 6, metadata))
    }

    @Test func `a packet of several segments says so`() {
        var octets = Self.sized(Self.message)
        octets[47] = 3
        let metadata = PacketMetadata(hook: 4, checksum: .segmented, mark: 9, isWhole: true, number: 258)
        #expect(read(octets) == .packet(number: 258, payload: 60..<65, length: 5, metadata))
    }

    @Test func `a message cut behind the packet's number still gets a verdict`() {
        let octets = Self.sized(Self.message)
        for length in 32..<octets.count {
            #expect(read(Array(octets.prefix(length))) == .unreadable(number: 258), "\(length) octets")
        }
        for length in 0..<31 {
            #expect(read(Array(octets.prefix(length))) == .malformed, "\(length) octets")
        }
    }

    @Test func `an attribute that claims too much ends the reading`() {
        var octets = Self.sized(Self.message)
        octets.replaceSubrange(32..<34, with: Self.half(200))
        #expect(read(octets) == .unreadable(number: 258))
        octets.replaceSubrange(32..<34, with: Self.half(3))
        #expect(read(octets) == .unreadable(number: 258))
    }

    @Test func `the kernel's complaints give their error number`() {
        let header = Self.half(2) + Self.half(0) + Self.word(0) + Self.word(0)
        let complaint = Self.sized(Self.word(0) + header + Self.word(UInt32(bitPattern: -2)))
        #expect(read(complaint) == .failure(errno: 2))
        #expect(read(Self.sized(Self.word(0) + header + Self.word(0))) == .other)
    }

    @Test func `whatever the octets, reading ends and stays within them`() {
        var generator = SystemRandomNumberGenerator()
        let valid = Self.sized(Self.message)
        for _ in 0..<100_000 {
            var octets = valid
            for _ in 0..<Int.random(in: 1...6, using: &generator) {
                let place = Int.random(in: octets.indices, using: &generator)
                octets[place] = .random(in: 0...255, using: &generator)
            }
            octets.removeLast(Int.random(in: 0...octets.count, using: &generator))
            if case .packet(_, let payload, _, _) = read(octets) {
                #expect(payload.lowerBound >= 0 && payload.upperBound <= octets.count)
            }
        }
    }

    @Test func `errors end as a sentence that says what to do`() {
        let unprivileged = NetlinkError(operation: .bindQueue(3), errno: 1)
        #expect(unprivileged.description.contains("CAP_NET_ADMIN"))
        #expect(unprivileged.description.hasSuffix("."))
        let missing = NetlinkError(operation: .bindQueue(3), errno: 22)
        #expect(missing.description.contains("nfnetlink_queue"))
    }
}
