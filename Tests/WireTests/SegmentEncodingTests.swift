// SPDX-License-Identifier: GPL-3.0-or-later

import Testing
import Wire

@Suite struct SegmentEncodingTests {
    @Test(arguments: Vector.all("encoding.hex"))
    func `a segment is encoded as scapy encodes it`(_ vector: Vector) throws {
        let stamps = vector["timestamps"].split(separator: " ").compactMap { UInt32($0) }
        let segment = TCPSegment(
            tuple: try vector.tuple("tuple"),
            sequence: SequenceNumber(try #require(UInt32(vector["sequence"]))),
            acknowledgement: SequenceNumber(try #require(UInt32(vector["acknowledgement"]))),
            flags: TCPFlags(rawValue: try #require(UInt8(vector["flags"]))),
            window: try #require(UInt16(vector["window"])),
            payloadLength: try #require(UInt16(vector["data"])),
            timestamps: stamps.count == 2 ? TCPTimestamps(value: stamps[0], echoReply: stamps[1]) : nil)
        #expect(try dump(segment.encode()) == dump(vector.packet("octets")))
    }

    @Test(arguments: 0..<300)
    func `what is encoded is observed again`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        let family: AddressFamily = Bool.random(using: &random) ? .ipv4 : .ipv6
        let segment = TCPSegment(
            tuple: RandomPacket.tuple(family, using: &random),
            sequence: SequenceNumber(UInt32(truncatingIfNeeded: random.next())),
            acknowledgement: SequenceNumber(UInt32(truncatingIfNeeded: random.next())),
            flags: TCPFlags(rawValue: UInt8(truncatingIfNeeded: random.next())),
            window: UInt16(truncatingIfNeeded: random.next()),
            payloadLength: UInt16.random(in: 0...1400, using: &random),
            timestamps: Bool.random(using: &random) ? nil : TCPTimestamps(value: 5, echoReply: UInt32(seed)))
        let octets = segment.encode(identification: 77)
        guard case .tcp(let tcp) = Recognition(octets.span) else {
            Issue.record("not recognised:\n\(dump(octets))")
            return
        }
        #expect(
            tcp.observed(in: octets.span)
                == ObservedSegment(
                    tuple: segment.tuple, sequence: segment.sequence, acknowledgement: segment.acknowledgement,
                    flags: segment.flags, window: segment.window, payloadLength: UInt32(segment.payloadLength),
                    timestamps: segment.timestamps))
        #expect(tcp.checksumFromScratch(in: octets.span) == 0)
        if family == .ipv4 {
            #expect(referenceChecksum(Array(octets[..<20])) == 0)
            #expect(octets[4..<6] == [0, 77])
        }
    }

    @Test func `a segment that no IP packet can be is not encoded`() throws {
        let four = try #require(Endpoint("192.0.2.1:1"))
        let six = try #require(Endpoint("[2001:db8::1]:1"))
        func length(_ source: Endpoint, _ destination: Endpoint, _ data: UInt16) -> Int {
            TCPSegment(
                tuple: FourTuple(source: source, destination: destination), sequence: SequenceNumber(0),
                acknowledgement: SequenceNumber(0), flags: .ack, payloadLength: data
            ).encode().count
        }
        #expect(length(four, six, 0) == 0)
        #expect(length(six, four, 0) == 0)
        #expect(length(four, four, 65495) == 65535)
        #expect(length(four, four, 65496) == 0)
        #expect(length(six, six, 65515) == 65575)
        #expect(length(six, six, 65516) == 0)
    }

    @Test func `the number after a segment counts data, SYN and FIN`() throws {
        let end = try #require(Endpoint("192.0.2.1:1"))
        func next(_ flags: TCPFlags, _ data: UInt32) -> UInt32 {
            ObservedSegment(
                tuple: FourTuple(source: end, destination: end), sequence: SequenceNumber(0xffff_fffe),
                acknowledgement: SequenceNumber(0), flags: flags, window: 0, payloadLength: data
            ).nextSequence.rawValue
        }
        #expect(next(.ack, 0) == 0xffff_fffe)
        #expect(next(.syn, 0) == 0xffff_ffff)
        #expect(next([.fin, .ack], 5) == 4)
        #expect(next(.rst, 0) == 0xffff_fffe)
    }

    @Test(arguments: [
        (TCPFlags.syn, true), (TCPFlags([.syn, .psh]), true), (TCPFlags([.syn, .ack]), false),
        (TCPFlags([.syn, .rst]), false), (TCPFlags([.syn, .fin]), false), (TCPFlags.ack, false), (TCPFlags([]), false),
    ])
    func `only a SYN alone opens a connection`(_ flags: TCPFlags, _ opens: Bool) {
        #expect(flags.opensConnection == opens)
    }
}
