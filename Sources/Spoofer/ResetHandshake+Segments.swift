// SPDX-License-Identifier: GPL-3.0-or-later

internal import Wire

// What the handshake sends, and why each segment looks as it does.
extension ResetHandshake {
    /// Half of a number space: x and x + 2³¹ are never in one window, which is at most 2³⁰ (RFC 7323 section 2.3).
    private static var half: UInt32 { 1 << 31 }

    /// The challenges of one attempt, while the victim's numbers are unknown.
    ///
    /// The first is without payload and without timestamps: an invented timestamp makes Linux drop it silently (PAWS,
    /// RFC 7323 section 5). Later ones carry one octet, which exempts them from Linux's limit of one answer per 500 ms
    /// (`tcp_oow_rate_limited`); every second one carries timestamps, for stacks that insist on them (FreeBSD).
    mutating func challenges(attempt: Int) -> [Action] {
        if order.probe == .paper {
            let step = UInt32(truncatingIfNeeded: attempt) &* (1 << 30 - 1)
            return [challenge(guess.sequence &+ step, guess.acknowledgement &+ step)]
        }
        let payload: UInt16 = attempt == 0 || attempt % 4 == 1 && attempt > 1 ? 0 : 1
        var stamps: TCPTimestamps?
        if attempt > 0, attempt % 2 == 0 {
            stamps = timestamps
            // Nobody has told any: of two values half the space apart one passes.
            if stamps == nil, attempt >= 4 {
                stamps = TCPTimestamps(value: guess.timestamp &+ (attempt % 4 == 0 ? 0 : Self.half), echoReply: 0)
            }
        }
        if attempt > 0, payload > 0, let peer = impersonated, stamps == nil || stamps == timestamps {
            // Old data with an old acknowledgement, close enough for the packet filters that drop what is too old. Not
            // the very last octets: they may have been lost, and the victim must not take ours for them.
            return [
                challenge(
                    peer.next.rawValue &- UInt32.random(in: 20_000..<60_000, using: &random),
                    peer.expects.rawValue &- UInt32.random(in: 1..<30_000, using: &random), payload, stamps)
            ]
        }
        let (sequence, acknowledgement) = (random32(), random32())
        return [
            challenge(sequence, acknowledgement, payload, stamps),
            challenge(sequence &+ Self.half, acknowledgement, payload, stamps),
            challenge(sequence, acknowledgement &+ Self.half, payload, stamps),
            challenge(sequence &+ Self.half, acknowledgement &+ Self.half, payload, stamps),
        ]
    }

    /// A challenge to a victim whose numbers are known: alive, it answers with its numbers; else with a RST at the
    /// acknowledgement number of the challenge, which is random.
    ///
    /// The octet ends one before the number that the victim expects: it is old whatever happens, so never delivered; it
    /// lies outside the window, so the answer does not depend on the acknowledgement number; and it is answered at
    /// once. That number is one of the past, which packet filters at the victim let pass; on every second attempt of
    /// the near past, for the older ones among them (Linux before 6.1: MAXACKWINDOW, 66000), and with timestamps.
    mutating func provingChallenge(_ told: Numbers, attempt: Int) -> [Action] {
        let isStrict = attempt % 2 == 1
        let age = UInt32.random(in: isStrict ? 1..<60_000 : 1 << 24..<1 << 31 - 1 << 24, using: &random)
        return [
            challenge(
                told.expects.rawValue &- 2, told.next.rawValue &- age, 1, isStrict ? timestamps : nil)
        ]
    }

    /// The RST: at exactly the number that the victim expects, with an acknowledgement that packet filters find right.
    /// No timestamps: RFC 7323 section 5.2 exempts RSTs from its check.
    mutating func resetSegment(at told: Numbers) -> Action {
        report.resets += 1
        return .send(
            TCPSegment(
                tuple: order.tuple, sequence: told.expects, acknowledgement: told.next, flags: [.rst, .ack]))
    }

    /// One ACK with these numbers; a RST that brings the acknowledgement number back will be believed.
    mutating func challenge(
        _ sequence: UInt32, _ acknowledgement: UInt32, _ payload: UInt16 = 0, _ stamps: TCPTimestamps? = nil
    ) -> Action {
        report.challenges += 1
        remember(SequenceNumber(acknowledgement), in: &nonces, atMost: 64)
        return .send(
            TCPSegment(
                tuple: order.tuple, sequence: SequenceNumber(sequence),
                acknowledgement: SequenceNumber(acknowledgement), flags: .ack, window: policy.window,
                payloadLength: payload, timestamps: stamps))
    }

    mutating func random32() -> UInt32 { UInt32.random(in: 0...UInt32.max, using: &random) }

    func remember(_ number: SequenceNumber, in list: inout [SequenceNumber], atMost limit: Int) {
        guard !list.contains(number) else { return }
        if list.count == limit { list.removeFirst() }
        list.append(number)
    }
}
