// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// Speaks to one endpoint, the victim, in its peer's name until it has reset the connection.
///
///     idle ── start ─► challenging ── ACK ─► resetting ── RST with a number of ours ─► proven
///                        │ ▲ └─┘ retry          │ ▲ └┘ new ACK: RST there too            │ (half open? quiet first)
///                        │ │                    │ │                                      ▼
///                        └─┼── time-out: unproven ─► standing ── ACK ─► resetting      (server) RST for what comes
///                          └── client's SYN, in every state ─► over
///
/// The victim itself tells its numbers: an acknowledgement that does not fit is answered with the right ones (RFC 9293
/// section 3.10.7.4, "challenge ACK" in RFC 5961). A RST is accepted only at exactly the number that the victim
/// expects, and some stacks compare with the number that they have last sent; so every acknowledgement number that the
/// victim emits draws a RST at that number. A last challenge with a random acknowledgement number proves the result: an
/// endpoint without the connection answers with a RST whose sequence number is ours (RFC 9293 section 3.10.7.1).
///
/// Neither the clock nor chance is its own: `now` is in nanoseconds of a monotonic clock, all random numbers come from
/// the seed. Whatever does not fit is ignored and counted, since a stranger may choose it.
public struct ResetHandshake: Sendable {
    enum Phase: Hashable, Sendable {
        case idle
        /// The victim's numbers are unknown.
        case challenging(attempt: Int)
        /// A RST has been sent; no proof yet.
        case resetting(attempt: Int)
        /// The victim answered like one without the connection, but may hold it half open (SYN-RECEIVED answers a wrong
        /// acknowledgement with a RST and stays, RFC 9293 section 3.10.7.4): proven if no SYN-ACK comes until then.
        case quiet(until: UInt64)
        /// Timed out, or not asked: whatever the victim says is answered.
        case standing
        /// A server that has no such connection any more; whatever it still says is answered with a RST.
        case proven
        /// A client of which nothing more is wanted.
        case over
    }

    /// What one endpoint has told of itself.
    struct Numbers: Hashable, Sendable {
        /// The next sequence number it will send.
        var next: SequenceNumber
        /// The next sequence number it expects.
        var expects: SequenceNumber
    }

    public let order: Order
    public let policy: Policy
    public internal(set) var report = Report()
    /// The outcome so far.
    public private(set) var outcome: Outcome?

    var random: SplitMix64
    private var phase = Phase.idle
    private var retryAt: UInt64?
    private var startedAt: UInt64 = 0
    private var timeoutAt: UInt64 = 0
    /// Acknowledgement numbers that we have sent and that a RST may bring back; the oldest give way.
    var nonces: [SequenceNumber] = []
    /// The victim's latest numbers, and those of its first answer.
    var victim: Numbers?
    private var firstAnswer: Numbers?
    /// The impersonated endpoint's numbers, if its segments have told them.
    var impersonated: Numbers?
    /// Timestamps that the victim would accept from the endpoint we impersonate.
    var timestamps: TCPTimestamps?
    var mayBeHalfOpen: Bool
    /// Acknowledgement numbers at which a RST has been sent; the oldest give way.
    private var reset: [SequenceNumber] = []
    private var lastReset: UInt64 = 0
    private var rounds = 0
    /// Where the paper's challenges begin, and the timestamp of the last resort.
    var guess: (sequence: UInt32, acknowledgement: UInt32, timestamp: UInt32)

    /// - Parameter seed: the source of all random numbers; unpredictable in production.
    public init(_ order: Order, policy: Policy = Policy(), seed: UInt64) {
        self.order = order
        self.policy = policy
        random = SplitMix64(seed: seed)
        mayBeHalfOpen = order.kind == .server && (order.state == .synSent || order.state == .synReceived)
        guess = (
            UInt32.random(in: 0...UInt32.max, using: &random), UInt32.random(in: 0...UInt32.max, using: &random),
            UInt32.random(in: 0...UInt32.max, using: &random)
        )
    }

    /// When `deadlinePassed` wants to be called; nil when nothing is awaited.
    public var deadline: UInt64? {
        switch phase {
        case .challenging, .resetting: min(retryAt ?? timeoutAt, timeoutAt)
        case .quiet(let until): until
        case .idle, .standing, .proven, .over: nil
        }
    }

    // MARK: - Events

    /// Begins. A second call does nothing.
    public mutating func start(at now: UInt64) -> [Action] {
        guard phase == .idle else { return [] }
        startedAt = now
        timeoutAt = now &+ policy.timeout
        if order.kind == .client, order.state == .leaving {
            phase = .standing
            return []
        }
        phase = .challenging(attempt: 0)
        guard order.kind == .client, order.state == .synSent else {
            retryAt = now &+ policy.interval(0)
            return challenges(attempt: 0)
        }
        // A client that waits for a SYN-ACK answers with a RST and repeats its SYN at once. A RST of ours would be
        // "connection refused" to its application.
        retryAt = nil
        return [challenge(random32(), random32())]
    }

    /// Takes a segment that the victim has sent on this connection; any other is ignored.
    public mutating func observed(_ segment: ObservedSegment, at now: UInt64) -> [Action] {
        guard segment.tuple == order.tuple.reversed, phase != .idle, phase != .over else { return ignore() }
        if segment.flags.contains(.rst) { return observedReset(segment, at: now) }
        if order.kind == .client, segment.flags.contains(.syn) { return finish(.reconnected, .over) }
        guard segment.flags.contains(.ack) else { return ignore() }
        return observedAcknowledgement(segment, at: now)
    }

    /// Takes the numbers of the impersonated endpoint, as its own segments tell them: the next challenge will use them.
    ///
    /// - Parameters:
    ///   - peerNext: the sequence number after its latest segment.
    ///   - peerExpects: its latest acknowledgement number.
    ///   - timestamps: those of its latest segment.
    public mutating func learned(
        peerNext: SequenceNumber, peerExpects: SequenceNumber, timestamps: TCPTimestamps? = nil
    ) {
        impersonated = Numbers(next: peerNext, expects: peerExpects)
        if let timestamps { self.timestamps = timestamps }
    }

    /// Says that the clock has reached `deadline`. Too early a call does nothing.
    public mutating func deadlinePassed(at now: UInt64) -> [Action] {
        guard let deadline, now >= deadline else { return [] }
        if case .quiet = phase { return prove(at: now) }
        guard now < timeoutAt else {
            retryAt = nil
            guard outcome == nil else {
                phase = .standing
                return []
            }
            return finish(.unproven, .standing)
        }
        switch phase {
        case .challenging(let attempt):
            phase = .challenging(attempt: attempt + 1)
            retryAt = now &+ policy.interval(attempt + 1)
            return challenges(attempt: attempt + 1)
        case .resetting(let attempt):
            phase = .resetting(attempt: attempt + 1)
            retryAt = now &+ proofInterval(attempt + 1)
            guard let victim else { return [] }
            if order.kind == .client { return provingChallenge(victim, attempt: attempt + 1) }
            lastReset = now
            return [resetSegment(at: victim)] + provingChallenge(victim, attempt: attempt + 1)
        case .idle, .quiet, .standing, .proven, .over:
            return []
        }
    }

    // MARK: - What the victim says

    private mutating func observedReset(_ segment: ObservedSegment, at now: UInt64) -> [Action] {
        if segment.flags.contains(.ack) {
            // Not an answer to us, since we send nothing without ACK: it aborts by itself. Its number must be its own.
            guard isNear(segment.sequence, victim?.next) else { return ignore() }
            mayBeHalfOpen = false
        } else if !nonces.contains(segment.sequence) {
            // An answer to somebody else, from before.
            return ignore()
        }
        if phase == .proven { return ignore() }
        guard mayBeHalfOpen else { return prove(at: now) }
        if case .quiet = phase { return [] }
        phase = .quiet(until: now &+ policy.quietPeriod)
        return []
    }

    private mutating func observedAcknowledgement(_ segment: ObservedSegment, at now: UInt64) -> [Action] {
        let told = Numbers(next: segment.nextSequence, expects: segment.acknowledgement)
        if order.kind == .client {
            guard isNear(told.next, firstAnswer?.next), isNear(told.expects, firstAnswer?.expects) else {
                return ignore()
            }
        }
        if firstAnswer == nil { firstAnswer = told }
        if report.firstAnswer == nil { report.firstAnswer = now }
        if victim?.expects.precedes(told.expects) ?? true || victim?.expects == told.expects {
            victim = told
            if let echoed = segment.timestamps {
                timestamps = TCPTimestamps(value: echoed.echoReply, echoReply: echoed.value)
            }
        }
        // Beyond SYN-RECEIVED an endpoint sends no SYN, and in it nothing else.
        mayBeHalfOpen = order.kind == .server && segment.flags.contains(.syn)
        return answer(told, at: now)
    }

    /// A RST at the number that the victim has told, and a challenge to prove it.
    private mutating func answer(_ told: Numbers, at now: UInt64) -> [Action] {
        let isNew = !reset.contains(told.expects)
        let isPaced = report.resets == 0 || now &- lastReset >= policy.interval(0)
        let isDue = report.resets == 0 || now &- lastReset >= resetInterval
        // What a client expects never falls, so an older number cannot be the right one any more, and the RST there could
        // meet the client's next connection: the stateful packet filter of the client's own would end that.
        let isOlder = reset.contains { told.expects.precedes($0) }
        guard order.kind == .server || !isOlder || isDue else { return ignore() }
        switch phase {
        case .challenging, .resetting, .quiet:
            // A number that has had its RST: either the two have crossed, or one was lost and the next interval repeats
            // it. In a quiet phase no interval runs, and to a client a RST is repeated only when it shows itself.
            let isRepeated = (isQuiet || order.kind == .client) && isDue
            guard isNew && (isPaced || report.resets < policy.promptResets) || isRepeated else { return ignore() }
        case .standing, .proven:
            guard isDue || isNew && report.resets < policy.promptResets else { return ignore() }
        case .idle, .over:
            return ignore()
        }
        remember(told.expects, in: &reset, atMost: 32)
        lastReset = now
        let actions = [resetSegment(at: told)]
        if phase == .proven { return actions }
        if phase == .standing {
            rounds = 0
            timeoutAt = now &+ policy.timeout
        }
        rounds += 1
        if case .resetting = phase, rounds > policy.promptRounds { return actions }
        phase = .resetting(attempt: 0)
        retryAt = now &+ proofInterval(0)
        // A client's next SYN may be on its way already. A challenge that meets it draws a RST, which the stateful packet
        // filter of the client's own takes for the end of the new connection. So the client gets time to speak first.
        return order.kind == .client ? actions : actions + provingChallenge(told, attempt: 0)
    }

    private func proofInterval(_ attempt: Int) -> UInt64 {
        order.kind == .client ? max(resetInterval, policy.interval(attempt)) : policy.interval(attempt)
    }

    /// How long a RST is not repeated at the same number. A client's segments go on arriving for a round trip after its
    /// RST was sent, and so does the SYN of its next connection, which a second RST would meet.
    private var resetInterval: UInt64 {
        guard order.kind == .client else { return policy.interval(0) }
        let roundTrip = report.firstAnswer.map { $0 &- startedAt } ?? 0
        return max(policy.clientInterval, min(2 &* roundTrip, policy.timeout / 2))
    }

    private var isQuiet: Bool {
        if case .quiet = phase { return true }
        return false
    }

    /// Whether a number may belong to this connection, judged by one that does. Without one every number may.
    private func isNear(_ number: SequenceNumber, _ known: SequenceNumber?) -> Bool {
        known.map { abs($0.distance(to: number)) <= Int(policy.guardWindow) } ?? true
    }

    // MARK: - Endings

    private mutating func prove(at now: UInt64) -> [Action] {
        report.proof = now
        return finish(.proven, order.kind == .client ? .over : .proven)
    }

    private mutating func finish(_ outcome: Outcome, _ phase: Phase) -> [Action] {
        self.outcome = outcome
        self.phase = phase
        retryAt = nil
        return [.finish(outcome)]
    }

    private mutating func ignore() -> [Action] {
        report.ignored += 1
        return []
    }
}
