// SPDX-License-Identifier: GPL-3.0-or-later

import Testing
import Wire

@Suite struct RecognitionTests {
    @Test(arguments: Vector.all("recognition.hex"))
    func `a packet is recognised for what scapy made it`(_ vector: Vector) throws {
        let octets = try vector.packet("octets")
        let kind =
            switch Recognition(octets.span) {
            case .tcp: "tcp"
            case .icmpError: "icmpError"
            case .fragment(let first): first == nil ? "fragment" : "first fragment"
            case .other: "other"
            case .malformed(let malformation): "malformed \(malformation)"
            }
        #expect(kind == vector["kind"])
    }

    @Test func `every malformation has a golden packet`() {
        let seen = Set(Vector.all("recognition.hex").map { $0["kind"] })
        for malformation in Malformation.allCases { #expect(seen.contains("malformed \(malformation)")) }
    }

    @Test(arguments: 0..<400)
    func `a random TCP packet gives back what was put in`(_ seed: Int) throws {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        guard case .tcp(let tcp) = Recognition(packet.octets.span) else {
            Issue.record("not recognised:\n\(dump(packet.octets))")
            return
        }
        let observed = tcp.observed(in: packet.octets.span)
        let header = Array(packet.octets[packet.transport...])
        #expect(observed.tuple == packet.tuple)
        #expect(tcp.fourTuple(in: packet.octets.span) == packet.tuple)
        #expect(observed.sequence.rawValue == header[4..<8].reduce(0) { $0 << 8 | UInt32($1) })
        #expect(observed.acknowledgement.rawValue == header[8..<12].reduce(0) { $0 << 8 | UInt32($1) })
        #expect(observed.flags.rawValue == header[13])
        #expect(observed.window == UInt16(header[14]) << 8 | UInt16(header[15]))
        #expect(Int(observed.payloadLength) == header.count - Int(header[12] >> 4) * 4)
        #expect(tcp.checksumFromScratch(in: packet.octets.span) == 0)

        let error = packet.error(using: &random)
        guard case .icmpError(let recognised) = Recognition(error.span) else {
            Issue.record("not recognised:\n\(dump(error))")
            return
        }
        #expect(recognised.quotedTuple(in: error.span) == packet.tuple)
        #expect(recognised.checksumFromScratch(in: error.span) == 0)
    }

    @Test(arguments: 0..<400)
    func `no octets can stop the program, whatever is done with what was recognised`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        for round in 0..<60 {
            var octets = Bool.random(using: &random) ? packet.octets : packet.error(using: &random)
            if round % 7 == 0 { octets = random.octets(Int.random(in: 0...120, using: &random)) }
            if round % 7 == 1, !octets.isEmpty { octets[0] = [0x45, 0x46, 0x4f, 0x60][round % 4] }
            for _ in 0..<Int.random(in: 0...6, using: &random) where !octets.isEmpty {
                // Headers decide the walk, so most mutations hit them.
                let reach = Bool.random(using: &random) ? octets.count : min(octets.count, 60)
                octets[Int.random(in: 0..<reach, using: &random)] = UInt8(truncatingIfNeeded: random.next())
            }
            if round % 3 == 0 { octets.removeLast(Int.random(in: 0...octets.count, using: &random)) }
            let length = octets.count
            for checksum in [ChecksumState.complete, .pending, .segmented] {
                let family: AddressFamily = Bool.random(using: &random) ? .ipv4 : .ipv6
                use(&octets, checksum, RandomPacket.endpoint(family, using: &random))
            }
            #expect(octets.count == length)
        }
    }

    /// Every verb on whatever `octets` are.
    private func use(_ octets: inout [UInt8], _ checksum: ChecksumState, _ endpoint: Endpoint) {
        var packet = octets.mutableSpan
        switch Recognition(packet.span) {
        case .tcp(let tcp):
            _ = tcp.observed(in: packet.span)
            _ = tcp.rewriteSource(to: endpoint, in: &packet, checksum: checksum)
            _ = tcp.rewriteDestination(to: endpoint, in: &packet, checksum: checksum)
        case .icmpError(let error):
            _ = error.quotedTuple(in: packet.span)
            _ = error.rewriteQuotedSource(to: endpoint, andDestination: true, in: &packet, checksum: checksum)
            _ = error.rewriteQuotedDestination(to: endpoint, andSource: true, in: &packet, checksum: checksum)
        case .fragment(let first):
            _ = first?.fourTuple(in: packet.span)
        case .other, .malformed:
            break
        }
    }

    @Test func `timestamps are found behind other options and not behind a malformed one`() {
        // `inHeader`: how many of the octets the header counts as options; the others are data.
        func timestamps(_ options: [UInt8], inHeader: Int? = nil) -> TCPTimestamps? {
            let tuple = FourTuple(
                source: Endpoint(address: .v4(IPv4Address(rawValue: 1)), port: 1),
                destination: Endpoint(address: .v4(IPv4Address(rawValue: 2)), port: 2))
            let segment = TCPSegment(
                tuple: tuple, sequence: SequenceNumber(0), acknowledgement: SequenceNumber(0), flags: .ack,
                payloadLength: UInt16(options.count))
            var octets = segment.encode()
            octets.replaceSubrange(40..., with: options)
            octets[32] = UInt8((20 + (inHeader ?? options.count)) / 4) << 4
            guard case .tcp(let tcp) = Recognition(octets.span) else { return nil }
            return tcp.timestamps(in: octets.span)
        }
        let option: [UInt8] = [8, 10, 0, 0, 0, 7, 0, 0, 0, 9]
        let expected = TCPTimestamps(value: 7, echoReply: 9)
        #expect(timestamps([1, 1] + option) == expected)
        #expect(timestamps([2, 4, 5, 0xb4, 4, 2] + option) == expected)
        #expect(timestamps(option + [0, 0]) == expected)
        #expect(timestamps([0, 1] + option) == nil)
        #expect(timestamps([3, 0] + option) == nil)
        #expect(timestamps([3, 1] + option) == nil)
        #expect(timestamps([3, 40] + option) == nil)
        #expect(timestamps([1, 1, 8, 9, 0, 0, 0, 7, 0, 0, 0, 0]) == nil)
        #expect(timestamps([1, 1] + option, inHeader: 8) == nil)
        #expect(timestamps([1, 1, 1, 8]) == nil)
        #expect(timestamps([1, 1, 8, 10]) == nil)
    }
}
