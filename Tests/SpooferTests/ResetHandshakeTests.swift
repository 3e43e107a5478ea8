// SPDX-License-Identifier: GPL-3.0-or-later

import Spoofer
import Testing
import Wire

/// The handshake, event by event.
@Suite struct ResetHandshakeTests {
    static func handshake(
        _ kind: ResetHandshake.Order.Kind = .server, state: ResetHandshake.Order.ConnectionState = .established,
        probe: ResetHandshake.Order.ProbeStyle = .quadrants, policy: ResetHandshake.Policy = .init(), seed: UInt64 = 42
    ) -> ResetHandshake {
        let tuple = ResetHandshakeSimulationTests.tuple(kind)
        return ResetHandshake(.init(tuple: tuple, kind: kind, state: state, probe: probe), policy: policy, seed: seed)
    }

    /// A segment of the victim.
    static func said(
        _ handshake: ResetHandshake, seq: UInt32, ack: UInt32, _ flags: TCPFlags = .ack, length: UInt32 = 0,
        timestamps: TCPTimestamps? = nil
    ) -> ObservedSegment {
        ObservedSegment(
            tuple: handshake.order.tuple.reversed, sequence: SequenceNumber(seq), acknowledgement: SequenceNumber(ack),
            flags: flags, window: 500, payloadLength: length, timestamps: timestamps)
    }

    static func segments(_ actions: [ResetHandshake.Action]) -> [TCPSegment] {
        actions.compactMap { if case .send(let segment) = $0 { segment } else { nil } }
    }

    @Test func `the first challenge is four bare ACKs, one in each quadrant`() throws {
        var handshake = Self.handshake()
        let sent = Self.segments(handshake.start(at: 0))
        try #require(sent.count == 4)
        for segment in sent {
            #expect(segment.flags == .ack)
            #expect(segment.window == 1024)
            #expect(segment.payloadLength == 0)
            #expect(segment.timestamps == nil)
        }
        let first = sent[0]
        let quadrants = sent.map { segment in
            [
                segment.sequence.rawValue &- first.sequence.rawValue,
                segment.acknowledgement.rawValue &- first.acknowledgement.rawValue,
            ]
        }
        #expect(Set(quadrants) == [[0, 0], [1 << 31, 0], [0, 1 << 31], [1 << 31, 1 << 31]])
        #expect(handshake.start(at: 1).isEmpty, "it starts once")
    }

    @Test func `the paper's challenge is one ACK, and every retry adds the largest window`() throws {
        var handshake = Self.handshake(probe: .paper)
        var sent = Self.segments(handshake.start(at: 0))
        for _ in 0..<3 {
            sent += Self.segments(handshake.deadlinePassed(at: try #require(handshake.deadline)))
        }
        try #require(sent.count == 4)
        for (earlier, later) in zip(sent, sent.dropFirst()) {
            #expect(later.sequence.rawValue &- earlier.sequence.rawValue == 1 << 30 - 1)
            #expect(later.acknowledgement.rawValue &- earlier.acknowledgement.rawValue == 1 << 30 - 1)
        }
    }

    @Test func `the seed decides every number`() {
        var one = Self.handshake(seed: 5)
        var same = Self.handshake(seed: 5)
        var other = Self.handshake(seed: 6)
        let sent = one.start(at: 0)
        #expect(sent == same.start(at: 0))
        #expect(sent != other.start(at: 0))
    }

    @Test func `an answer draws RST and proving challenge in the same call`() throws {
        var handshake = Self.handshake()
        _ = handshake.start(at: 0)
        let sent = Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: 900, length: 100), at: 5))
        try #require(sent.count == 2)
        #expect(sent[0].flags == [.rst, .ack])
        #expect(sent[0].sequence.rawValue == 900)
        #expect(sent[0].acknowledgement.rawValue == 7100)
        #expect(sent[0].timestamps == nil)
        #expect(sent[1].flags == .ack)
        #expect(sent[1].sequence.rawValue == 898)
        #expect(sent[1].payloadLength == 1)
        #expect(sent[1].acknowledgement.precedes(SequenceNumber(7100)))
        #expect(handshake.report.firstAnswer == 5)
    }

    @Test func `every distinct acknowledgement number draws a RST there, a known one none`() {
        var handshake = Self.handshake()
        _ = handshake.start(at: 0)
        var resets: [UInt32] = []
        for ack: UInt32 in [900, 901, 900, 2000, 2000, 800] {
            for segment in Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: ack), at: 5))
            where segment.flags.contains(.rst) { resets.append(segment.sequence.rawValue) }
        }
        #expect(resets == [900, 901, 2000, 800])
        // What is repeated is the latest number, not the last to arrive.
        let repeated = Self.segments(handshake.deadlinePassed(at: 20_000_005))
        #expect(repeated.first?.sequence.rawValue == 2000)
        #expect(repeated.first?.flags.contains(.rst) == true)
    }

    @Test func `a RST with any number that we have sent proves it`() throws {
        for index in 0..<5 {
            var handshake = Self.handshake()
            var sent = Self.segments(handshake.start(at: 0))
            sent += Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: 900), at: 5))
                .filter { !$0.flags.contains(.rst) }
            let nonce = sent[index].acknowledgement.rawValue
            #expect(handshake.observed(Self.said(handshake, seq: nonce, ack: 0, .rst), at: 9) == [.finish(.proven)])
            #expect(handshake.report.proof == 9)
            #expect(handshake.outcome == .proven)
            #expect(handshake.deadline == nil)
        }
    }

    @Test func `a RST with another number proves nothing`() {
        var handshake = Self.handshake()
        _ = handshake.start(at: 0)
        #expect(handshake.observed(Self.said(handshake, seq: 12345, ack: 0, .rst), at: 1).isEmpty)
        #expect(handshake.outcome == nil)
        #expect(handshake.report.ignored == 1)
    }

    @Test func `a victim that aborts by itself has closed, if the number can be its own`() {
        var handshake = Self.handshake()
        _ = handshake.start(at: 0)
        _ = handshake.observed(Self.said(handshake, seq: 7000, ack: 900), at: 1)
        #expect(handshake.observed(Self.said(handshake, seq: 1 << 30, ack: 900, [.rst, .ack]), at: 2).isEmpty)
        #expect(
            handshake.observed(Self.said(handshake, seq: 7100, ack: 900, [.rst, .ack]), at: 2) == [.finish(.proven)])
    }

    @Test func `segments of other connections and of before the start are ignored`() {
        var handshake = Self.handshake()
        let segment = Self.said(handshake, seq: 1, ack: 2)
        #expect(handshake.observed(segment, at: 0).isEmpty)
        _ = handshake.start(at: 0)
        var stranger = segment
        stranger.tuple.source.port += 1
        #expect(handshake.observed(stranger, at: 0).isEmpty)
        stranger.tuple = handshake.order.tuple
        #expect(handshake.observed(stranger, at: 0).isEmpty)
        #expect(handshake.observed(Self.said(handshake, seq: 1, ack: 2, .psh), at: 0).isEmpty)
        #expect(handshake.report.ignored == 4)
    }

    @Test func `a client's SYN ends it in every state, for ever`() throws {
        let answered: (inout ResetHandshake) -> Void = { _ = $0.observed(Self.said($0, seq: 7000, ack: 900), at: 1) }
        let timedOut: (inout ResetHandshake) -> Void = { handshake in
            while let deadline = handshake.deadline { _ = handshake.deadlinePassed(at: deadline) }
        }
        for prepare in [{ _ in }, answered, timedOut] {
            var handshake = Self.handshake(.client)
            _ = handshake.start(at: 0)
            prepare(&handshake)
            let syn = Self.said(handshake, seq: 555, ack: 0, .syn)
            #expect(handshake.observed(syn, at: 10_000_000_000) == [.finish(.reconnected)])
            #expect(handshake.deadline == nil)
            #expect(handshake.observed(Self.said(handshake, seq: 7000, ack: 901), at: 10_000_000_001).isEmpty)
            #expect(handshake.deadlinePassed(at: 20_000_000_000).isEmpty)
            #expect(handshake.observed(syn, at: 20_000_000_000).isEmpty)
        }
    }

    @Test func `numbers far from a client's first answer draw no RST`() {
        var handshake = Self.handshake(.client)
        _ = handshake.start(at: 0)
        _ = handshake.observed(Self.said(handshake, seq: 7000, ack: 900), at: 1)
        let far = handshake.policy.guardWindow + 1
        for (seq, ack) in [(7000 + far, 901), (7000, 900 + far), (7000 &- far, 901), (7000, 900 &- far)] {
            #expect(handshake.observed(Self.said(handshake, seq: seq, ack: ack), at: 2).isEmpty)
        }
        #expect(handshake.report.resets == 1)
        #expect(handshake.report.ignored == 4)
        #expect(!handshake.observed(Self.said(handshake, seq: 8000, ack: 5000), at: 2).isEmpty)
    }

    @Test func `a client's earlier segments, or the same again within a round trip, draw no second RST`() {
        var handshake = Self.handshake(.client)
        _ = handshake.start(at: 0)
        func said(_ ack: UInt32, at now: UInt64) -> [UInt32] {
            Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: ack), at: now)).map(
                \.sequence.rawValue)
        }
        #expect(said(900, at: 300_000_000) == [900])
        #expect(said(950, at: 301_000_000) == [950])
        #expect(said(920, at: 302_000_000).isEmpty)
        #expect(said(950, at: 890_000_000).isEmpty)
        #expect(said(950, at: 901_000_000) == [950])
        #expect(said(960, at: 902_000_000) == [960])
    }

    @Test func `a client that is leaving is sent nothing until it speaks`() {
        var handshake = Self.handshake(.client, state: .leaving)
        #expect(handshake.start(at: 0).isEmpty)
        #expect(handshake.deadline == nil)
        let sent = Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: 900, [.fin, .ack]), at: 1))
        #expect(sent.map(\.flags) == [[.rst, .ack]])
        #expect(sent.first?.sequence.rawValue == 900)
        #expect(
            handshake.observed(Self.said(handshake, seq: 100, ack: 0, .syn), at: 2) == [.finish(.reconnected)])
    }

    @Test func `a host whose client is leaving is challenged like any other`() {
        var handshake = Self.handshake(.server, state: .leaving)
        #expect(Self.segments(handshake.start(at: 0)).count == 4)
    }

    @Test func `nothing is sent to a client once its reset is proven`() throws {
        var handshake = Self.handshake(.client)
        let nonce = try #require(Self.segments(handshake.start(at: 0)).first).acknowledgement.rawValue
        #expect(handshake.observed(Self.said(handshake, seq: nonce, ack: 0, .rst), at: 1) == [.finish(.proven)])
        #expect(handshake.observed(Self.said(handshake, seq: 7000, ack: 900), at: 2).isEmpty)
        #expect(handshake.deadline == nil)
    }

    @Test func `a host that speaks after its proof draws a RST, and the proof stands`() throws {
        var handshake = Self.handshake()
        let nonce = try #require(Self.segments(handshake.start(at: 0)).first).acknowledgement.rawValue
        _ = handshake.observed(Self.said(handshake, seq: nonce, ack: 0, .rst), at: 1)
        let sent = Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: 900, [.syn, .ack]), at: 2))
        #expect(sent.map(\.sequence.rawValue) == [900])
        #expect(sent.map(\.flags) == [[.rst, .ack]])
        #expect(handshake.outcome == .proven)
        #expect(handshake.deadline == nil)
        // The same again, when the RST was lost: once more, but not for each of a flood.
        #expect(handshake.observed(Self.said(handshake, seq: 7000, ack: 900, [.syn, .ack]), at: 3).isEmpty)
        #expect(
            handshake.observed(Self.said(handshake, seq: 7000, ack: 900, [.syn, .ack]), at: 1_000_000_000).count == 1)
    }

    @Test func `a SYN-ACK seen late makes the host's RST no proof until it has been quiet`() throws {
        var handshake = Self.handshake()
        let nonce = try #require(Self.segments(handshake.start(at: 0)).first).acknowledgement.rawValue
        let reset = Self.segments(handshake.observed(Self.said(handshake, seq: 7000, ack: 900, [.syn, .ack]), at: 1))
        #expect(reset.first?.sequence.rawValue == 900)
        #expect(reset.first?.acknowledgement.rawValue == 7001)
        #expect(handshake.observed(Self.said(handshake, seq: nonce, ack: 0, .rst), at: 2).isEmpty)
        #expect(handshake.deadline == 2 + handshake.policy.quietPeriod)
        #expect(handshake.deadlinePassed(at: 2 + handshake.policy.quietPeriod) == [.finish(.proven)])
    }

    @Test func `a flood of new numbers is answered at a limited rate`() {
        var policy = ResetHandshake.Policy()
        policy.promptResets = 10
        policy.promptRounds = 4
        var handshake = Self.handshake(policy: policy)
        _ = handshake.start(at: 0)
        for ack in UInt32(0)..<1000 {
            _ = handshake.observed(Self.said(handshake, seq: 7000, ack: ack * 10), at: UInt64(ack) * 100_000)
        }
        // 100 ms at one per 20 ms beyond the ten.
        #expect((10...16).contains(handshake.report.resets))
        #expect(handshake.report.challenges == 4 + 4)
    }

    @Test func `a victim's timestamps come back on the second proving challenge`() throws {
        var handshake = Self.handshake()
        _ = handshake.start(at: 0)
        let stamps = TCPTimestamps(value: 11, echoReply: 22)
        let first = Self.segments(
            handshake.observed(Self.said(handshake, seq: 7000, ack: 900, timestamps: stamps), at: 0))
        #expect(first.allSatisfy { $0.timestamps == nil })
        let second = Self.segments(handshake.deadlinePassed(at: try #require(handshake.deadline)))
        #expect(second.last?.timestamps == TCPTimestamps(value: 22, echoReply: 11))
    }

    @Test func `a deadline that has not come does nothing`() throws {
        var handshake = Self.handshake()
        _ = handshake.start(at: 0)
        let deadline = try #require(handshake.deadline)
        #expect(deadline == 20_000_000)
        #expect(handshake.deadlinePassed(at: deadline - 1).isEmpty)
        #expect(handshake.deadlinePassed(at: deadline).count == 4)
    }

    @Test func `outcomes have stable names`() {
        #expect(ResetHandshake.Outcome.proven.rawValue == "proven")
        #expect(ResetHandshake.Outcome.unproven.rawValue == "unproven")
        #expect(ResetHandshake.Outcome.reconnected.rawValue == "reconnected")
    }
}
