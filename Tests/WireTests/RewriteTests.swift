// SPDX-License-Identifier: GPL-3.0-or-later

import Testing
import Wire

@Suite struct RewriteTests {
    /// What `verb` makes of `octets`.
    private func rewritten(
        _ octets: [UInt8], _ verb: String, to endpoint: Endpoint, _ checksum: ChecksumState, andOuter: Bool? = nil
    ) -> (octets: [UInt8], done: Bool, tuple: FourTuple)? {
        var octets = octets
        var packet = octets.mutableSpan
        let done: Bool
        let tuple: FourTuple
        switch (Recognition(packet.span), verb) {
        case (.tcp(let tcp), "source"):
            tuple = tcp.fourTuple(in: packet.span)
            done = tcp.rewriteSource(to: endpoint, in: &packet, checksum: checksum)
        case (.tcp(let tcp), "destination"):
            tuple = tcp.fourTuple(in: packet.span)
            done = tcp.rewriteDestination(to: endpoint, in: &packet, checksum: checksum)
        case (.icmpError(let error), "quoted-source"):
            tuple = error.quotedTuple(in: packet.span)
            done = error.rewriteQuotedSource(
                to: endpoint, andDestination: andOuter ?? true, in: &packet, checksum: checksum)
        case (.icmpError(let error), "quoted-destination"):
            tuple = error.quotedTuple(in: packet.span)
            let isFromHost = error.ip.source(in: packet.span) == tuple.destination.address
            done = error.rewriteQuotedDestination(
                to: endpoint, andSource: andOuter ?? isFromHost, in: &packet, checksum: checksum)
        default:
            return nil
        }
        return (octets, done, tuple)
    }

    @Test(
        arguments: Vector.all("tcp-rewrite.hex") + Vector.all("icmp-rewrite.hex"),
        [ChecksumState.complete, .pending])
    func `a rewrite gives the packet that scapy makes`(_ vector: Vector, _ checksum: ChecksumState) throws {
        var before = try vector.packet("before")
        let after = try vector.packet("after")
        if checksum == .pending {
            // What the field holds does not matter when the sum is still to be computed.
            var packet = before.mutableSpan
            switch Recognition(packet.span) {
            case .tcp(let tcp): packet[tcp.ip.payloadOffset + 16] ^= 0x5a
            case .icmpError(let error): packet[error.ip.payloadOffset + 2] ^= 0x5a
            default: Issue.record("not recognised")
            }
        }
        let result = try #require(rewritten(before, vector["verb"], to: vector.endpoint("to"), checksum))
        #expect(result.done)
        #expect(try result.tuple == vector.tuple("tuple"))
        #expect(dump(result.octets) == dump(after))
    }

    @Test(arguments: Vector.all("tcp-rewrite.hex"))
    func `the checksum of a packet of several segments is left alone`(_ vector: Vector) throws {
        let before = try vector.packet("before")
        var after = try vector.packet("after")
        guard case .tcp(let tcp) = Recognition(after.span) else {
            Issue.record("not recognised")
            return
        }
        let field = tcp.ip.payloadOffset + 16
        after.replaceSubrange(field..<field + 2, with: before[field..<field + 2])
        let result = try #require(rewritten(before, vector["verb"], to: vector.endpoint("to"), .segmented))
        #expect(dump(result.octets) == dump(after))
    }

    @Test(arguments: 0..<500)
    func `there and back is the same packet, octet for octet`(_ seed: Int) throws {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        let there = RandomPacket.endpoint(packet.tuple.source.address.family, using: &random)
        let error = packet.error(using: &random)
        let isFromHost = isFromDestination(error)
        for checksum in [ChecksumState.complete, .pending, .segmented] {
            for (octets, verb, back) in [
                (packet.octets, "source", packet.tuple.source),
                (packet.octets, "destination", packet.tuple.destination),
                (error, "quoted-source", packet.tuple.source), (error, "quoted-destination", packet.tuple.destination),
            ] {
                let andOuter = verb == "quoted-source" || isFromHost
                let first = try #require(rewritten(octets, verb, to: there, checksum, andOuter: andOuter))
                #expect(first.done)
                #expect(first.octets != octets || there == back)
                let second = try #require(rewritten(first.octets, verb, to: back, checksum, andOuter: andOuter))
                #expect(dump(second.octets) == dump(octets), "\(verb), \(checksum)")
            }
        }
    }

    private func isFromDestination(_ octets: [UInt8]) -> Bool {
        guard case .icmpError(let error) = Recognition(octets.span) else { return false }
        return error.ip.source(in: octets.span) == error.quotedTuple(in: octets.span).destination.address
    }

    @Test(arguments: 0..<500)
    func `the incremental checksum is the full one`(_ seed: Int) throws {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        let error = packet.error(using: &random)
        let to = RandomPacket.endpoint(packet.tuple.source.address.family, using: &random)
        for (octets, verb) in [
            (packet.octets, "source"), (packet.octets, "destination"), (error, "quoted-source"),
            (error, "quoted-destination"),
        ] {
            let incremental = try #require(rewritten(octets, verb, to: to, .complete))
            let full = try #require(rewritten(octets, verb, to: to, .pending))
            #expect(dump(incremental.octets) == dump(full.octets), "\(verb)")
        }
    }

    @Test func `a wrong checksum stays as wrong as it was`() throws {
        let vector = try #require(Vector.all("tcp-rewrite.hex").first)
        var octets = try vector.packet("before")
        octets[octets.count - 1] ^= 0x40
        let result = try #require(rewritten(octets, vector["verb"], to: vector.endpoint("to"), .complete))
        guard case .tcp(let tcp) = Recognition(result.octets.span) else {
            Issue.record("not recognised")
            return
        }
        #expect(tcp.checksumFromScratch(in: result.octets.span) != 0)
    }

    @Test(arguments: Vector.all("tcp-rewrite.hex") + Vector.all("icmp-rewrite.hex"))
    func `an endpoint of the other family changes nothing`(_ vector: Vector) throws {
        let before = try vector.packet("before")
        let other = try vector.endpoint("to").address.family == .ipv4 ? "[2001:db8::1]:1" : "192.0.2.1:1"
        let endpoint = try #require(Endpoint(other))
        let result = try #require(rewritten(before, vector["verb"], to: endpoint, .complete))
        #expect(!result.done)
        #expect(result.octets == before)
    }

    @Test(arguments: Vector.all("tcp-rewrite.hex") + Vector.all("icmp-rewrite.hex"))
    func `a sum from scratch over a copy that was cut is refused`(_ vector: Vector) throws {
        var before = try vector.packet("before")
        before.append(0)
        switch Recognition(before.span) {
        case .tcp(let tcp): before.replaceSubrange(tcp.ip.family == .ipv4 ? 2..<4 : 4..<6, with: [0xff, 0])
        case .icmpError(let error): before.replaceSubrange(error.ip.family == .ipv4 ? 2..<4 : 4..<6, with: [0xff, 0])
        default: Issue.record("not recognised")
        }
        let result = try #require(rewritten(before, vector["verb"], to: vector.endpoint("to"), .pending))
        #expect(!result.done)
        #expect(result.octets == before)
    }
}
