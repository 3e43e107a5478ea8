// SPDX-License-Identifier: GPL-3.0-or-later

import Spoofer
import Testing
import Wire

let clientEndpoint = Endpoint(address: .v4(IPv4Address(rawValue: 0xc612_0102)), port: 40_000)
let hostEndpoint = Endpoint(address: .v4(IPv4Address(rawValue: 0xc612_0202)), port: 80)
let milliseconds: UInt64 = 1_000_000

/// Handshakes against modelled peers, each from a seed of its own.
@Suite struct ResetHandshakeSimulationTests {
    /// The spoofed segments' tuple towards a victim of this kind.
    static func tuple(_ kind: ResetHandshake.Order.Kind) -> FourTuple {
        kind == .server
            ? FourTuple(source: clientEndpoint, destination: hostEndpoint)
            : FourTuple(source: hostEndpoint, destination: clientEndpoint)
    }

    static func wire(
        _ kind: ResetHandshake.Order.Kind, seed: UInt64, peerState: ModelPeer.State = .established,
        state: ResetHandshake.Order.ConnectionState = .established, traits: ModelPeer.Traits = .init(),
        probe: ResetHandshake.Order.ProbeStyle = .quadrants, window: UInt32 = 64_240
    ) -> ModelWire {
        var random = SplitMix64(seed: seed &* 31)
        let tuple = tuple(kind)
        let peer = ModelPeer(peerState, tuple: tuple.reversed, window: window, traits: traits, using: &random)
        let order = ResetHandshake.Order(tuple: tuple, kind: kind, state: state, probe: probe)
        return ModelWire(ResetHandshake(order, seed: random.next()), peer, seed: random.next())
    }

    /// A peer and a wire of which everything that may differ is drawn by lot.
    static func drawn(_ seed: UInt64, _ kind: ResetHandshake.Order.Kind) -> ModelWire {
        var random = SplitMix64(seed: seed)
        var traits = ModelPeer.Traits()
        traits.hasFirewall = .random(using: &random)
        traits.answersTooNewAcknowledgement = .random(using: &random)
        traits.usesTimestamps = .random(using: &random)
        let window: UInt32 = [0, 512, 64_240, 6 << 20, 1 << 30].randomElement(using: &random) ?? 0
        let isHalfOpen = kind == .server && Int.random(in: 0..<5, using: &random) == 0
        var wire = wire(
            kind, seed: random.next(), peerState: isHalfOpen ? .synReceived : .established,
            state: isHalfOpen ? .synReceived : .established, traits: traits, window: window)
        wire.loss = [0, 0, 0.03, 0.15].randomElement(using: &random) ?? 0
        wire.duplication = [0, 0.1].randomElement(using: &random) ?? 0
        wire.delay = [200_000...200_000, 50_000...40_000_000].randomElement(using: &random) ?? 0...0
        if Bool.random(using: &random) { wire.peer.lastLimited = wire.now }
        for _ in 0..<Int.random(in: 0...6, using: &random) {
            let count = UInt32.random(in: 1...3000, using: &random)
            wire.schedule(.dataArrives(count), after: .random(in: 0...60_000_000, using: &random))
        }
        for _ in 0..<Int.random(in: 0...6, using: &random) {
            let length = UInt32.random(in: 0...1448, using: &random)
            wire.schedule(.peerSpeaks(.ack, length), after: .random(in: 0...60_000_000, using: &random))
        }
        if isHalfOpen {
            for wait: UInt64 in [0, 1000, 3000, 7000] {
                wire.schedule(.peerSpeaks([.syn, .ack], 0), after: wait * milliseconds)
            }
        }
        if kind == .client, Int.random(in: 0..<4, using: &random) > 0 {
            wire.reconnectsAfter = .random(in: 0...30_000_000, using: &random)
        }
        return wire
    }

    @Test(arguments: UInt64(0)..<400)
    func `a reachable host is reset and proves it`(seed: UInt64) {
        var wire = Self.drawn(seed, .server)
        wire.run()
        #expect(wire.outcomes.last?.outcome == .proven)
        #expect(wire.peer.state == .closed, "what is proven is true")
        #expect(wire.outcomes.count(where: { $0.outcome == .proven }) == 1)
        #expect(wire.peer.garbage == 0)
        #expect(wire.handshake.deadline == nil)
        #expect(wire.sent.allSatisfy { $0.segment.tuple == Self.tuple(.server) })
        #expect(wire.sent.allSatisfy { !$0.segment.flags.contains(.syn) && $0.segment.flags.contains(.ack) })
        #expect(wire.sent.count < 400)
    }

    @Test(arguments: UInt64(0)..<400)
    func `a reachable client is reset, and its next connection is not touched`(seed: UInt64) {
        var wire = Self.drawn(seed, .client)
        wire.run()
        #expect([.proven, .reconnected].contains(wire.outcomes.last?.outcome))
        #expect(wire.peer.resets == 1)
        #expect(!wire.nextWasReset)
        #expect(wire.peer.garbage == 0)
        #expect(wire.sentAfterReconnect == 0)
        #expect(wire.sent.allSatisfy { $0.segment.tuple == Self.tuple(.client) })
        #expect(wire.handshake.deadline == nil)
    }

    @Test(arguments: UInt64(0)..<50)
    func `without loss one exchange is enough`(seed: UInt64) {
        for kind in [ResetHandshake.Order.Kind.server, .client] {
            var wire = Self.wire(kind, seed: seed, traits: .init(hasFirewall: seed % 2 == 0))
            let start = wire.now
            wire.run()
            #expect(wire.outcomes.map(\.outcome) == [.proven])
            // Challenge, answer, RST with challenge, proof: four times 0.2 ms. A client is given time to connect anew
            // between its RST and the challenge.
            let pause: UInt64 = kind == .client ? 400_000_000 : 0
            #expect(wire.outcomes.first.map { $0.at - start } == 800_000 + pause)
            #expect(wire.handshake.report.resets == 1)
            #expect(wire.handshake.report.challenges == 5)
        }
    }

    @Test(arguments: UInt64(0)..<30)
    func `a busy limiter costs one retry`(seed: UInt64) {
        var wire = Self.wire(.server, seed: seed, window: seed % 2 == 0 ? 0 : 64_240)
        wire.peer.lastLimited = wire.now
        let start = wire.now
        wire.run()
        #expect(wire.outcomes.map(\.outcome) == [.proven])
        #expect(wire.outcomes.first.map { $0.at - start } == 20 * milliseconds + 800_000)
    }

    @Test(arguments: UInt64(0)..<30)
    func `a stack that insists on timestamps is reset`(seed: UInt64) {
        var wire = Self.wire(.server, seed: seed, traits: .init(insistsOnTimestamps: true, usesTimestamps: true))
        wire.run()
        #expect(wire.outcomes.map(\.outcome) == [.proven])
        #expect(wire.peer.state == .closed)
        // With timestamps that the other side has told it is the second retry.
        var informed = Self.wire(.server, seed: seed, traits: .init(insistsOnTimestamps: true, usesTimestamps: true))
        let start = informed.now
        informed.handshake.learned(
            peerNext: informed.peer.receiveNext, peerExpects: informed.peer.sendNext,
            timestamps: TCPTimestamps(value: informed.peer.timestampRecent, echoReply: 77))
        informed.run()
        #expect(informed.outcomes.first.map { $0.at - start < 80 * milliseconds } == true)
    }

    @Test(arguments: UInt64(0)..<200)
    func `numbers learned from the other side never put an octet of ours into the stream`(seed: UInt64) {
        var random = SplitMix64(seed: seed)
        var wire = Self.wire(.server, seed: seed, traits: .init(hasFirewall: true))
        wire.peer.lastLimited = wire.now
        // What the client has sent last never arrived: a keystroke, two, a segment.
        let lost = [1, 2, 3, 1448].randomElement(using: &random) ?? 1
        wire.handshake.learned(
            peerNext: wire.peer.receiveNext.advanced(by: lost), peerExpects: wire.peer.sendNext)
        let start = wire.now
        wire.run()
        #expect(wire.outcomes.map(\.outcome) == [.proven])
        #expect(wire.peer.garbage == 0)
        #expect(wire.outcomes.first.map { $0.at - start } == 20 * milliseconds + 800_000)
    }

    @Test(arguments: [ResetHandshake.Order.Kind.server, .client])
    func `a dead peer is unproven at the time-out, and reset when it comes back`(kind: ResetHandshake.Order.Kind) {
        var wire = Self.wire(kind, seed: 7)
        wire.loss = 1
        let start = wire.now
        wire.run()
        #expect(wire.outcomes.map(\.outcome) == [.unproven])
        #expect(wire.outcomes.first?.at == start + 3000 * milliseconds)
        #expect(wire.handshake.deadline == nil)
        #expect(wire.sent.count <= 36)
        wire.loss = 0
        wire.schedule(.peerSpeaks(.ack, 100), after: 3600 * 1000 * milliseconds)
        wire.run(for: 3700 * 1000 * milliseconds)
        #expect(wire.outcomes.map(\.outcome) == [.unproven, .proven])
        #expect(wire.peer.state == .closed)
    }

    @Test func `unproven is said once, however often a peer that ignores RSTs speaks later`() {
        var wire = Self.wire(.server, seed: 3, traits: .init(ignoresResets: true))
        wire.run()
        for wait in UInt64(1)...3 { wire.schedule(.peerSpeaks(.ack, 100), after: wait * 60_000 * milliseconds) }
        let before = wire.handshake.report.resets
        wire.run(for: 300_000 * milliseconds)
        #expect(wire.outcomes.map(\.outcome) == [.unproven])
        #expect(wire.handshake.report.resets >= before + 3)
        #expect(wire.handshake.deadline == nil)
    }

    @Test func `a peer that ignores RSTs is unproven, and the handshake ends`() {
        var wire = Self.wire(.server, seed: 3, traits: .init(ignoresResets: true))
        wire.run()
        #expect(wire.outcomes.map(\.outcome) == [.unproven])
        #expect(wire.handshake.deadline == nil)
        #expect(wire.sent.count < 40)
    }

    @Test(arguments: UInt64(0)..<20)
    func `a half-open host's own RST proves nothing while its SYN-ACK may come again`(seed: UInt64) {
        var wire = Self.wire(.server, seed: seed, peerState: .synReceived, state: .synReceived)
        wire.schedule(.peerSpeaks([.syn, .ack], 0), after: 1000 * milliseconds)
        let start = wire.now
        wire.run()
        #expect(wire.outcomes.map(\.outcome) == [.proven])
        #expect(wire.peer.state == .closed)
        #expect(wire.outcomes.first.map { $0.at - start > 3000 * milliseconds } == true)
    }

    @Test func `a waiting client gets one kick and no RST`() {
        var wire = Self.wire(.client, seed: 1, peerState: .synSent, state: .synSent)
        wire.run()
        #expect(wire.sent.count == 1)
        #expect(wire.handshake.report.resets == 0)
        #expect(wire.outcomes.map(\.outcome) == [.proven])
    }

    @Test func `the paper's challenge fails at a firewall where four quadrants do not`() {
        var proven: [ResetHandshake.Order.ProbeStyle: Int] = [:]
        for style in [ResetHandshake.Order.ProbeStyle.quadrants, .paper] {
            for seed in UInt64(0)..<100 {
                var wire = Self.wire(.server, seed: seed, traits: .init(hasFirewall: true), probe: style)
                let start = wire.now
                wire.run()
                if let first = wire.outcomes.first, first.outcome == .proven, first.at - start < 10 * milliseconds {
                    proven[style, default: 0] += 1
                }
            }
        }
        #expect(proven[.quadrants] == 100)
        #expect((10...45).contains(proven[.paper] ?? 0), "a quarter of all random pairs is old in both numbers")
    }
}
