// SPDX-License-Identifier: GPL-3.0-or-later

import Spoofer
import Wire

/// One end of a TCP connection, as far as a stranger's segments can tell: Linux's rules of what is answered, with what,
/// and what kills (RFC 9293 section 3.10.7, RFC 5961, `tcp_validate_incoming`).
struct ModelPeer {
    enum State { case closed, synReceived, synSent, established }
    /// What of the rules differs.
    struct Traits {
        /// Answers an acknowledgement of what was not sent yet (Linux 6.18.38 on); older ones drop it silently.
        var answersTooNewAcknowledgement = true
        /// A stateful packet filter in front of it: drops numbers that nobody can have sent yet.
        var hasFirewall = false
        /// Like FreeBSD: silent to segments without timestamps, except RSTs.
        var insistsOnTimestamps = false
        var usesTimestamps = false
        /// Linux's limit: one answer per 500 ms to segments without payload.
        var isLimited = true
        /// Ignores every RST, like a TIME-WAIT under RFC 1337.
        var ignoresResets = false
    }

    var state: State
    var traits: Traits
    /// As seen from the peer: peer → the other end.
    let tuple: FourTuple
    var sendNext: SequenceNumber
    var receiveNext: SequenceNumber
    var window: UInt32
    /// How much of what it has sent was acknowledged, at most its largest window: what an old acknowledgement may lack.
    var acknowledged: UInt32 = 5000
    var timestampRecent: UInt32 = 0
    var lastLimited: UInt64?
    /// Octets that a stranger made it hand to its application.
    var garbage = 0
    /// How often it was reset.
    var resets = 0
    /// How many segments it has been sent.
    var received = 0

    init(
        _ state: State, tuple: FourTuple, window: UInt32 = 64_240, traits: Traits = Traits(),
        using random: inout SplitMix64
    ) {
        self.state = state
        self.traits = traits
        self.tuple = tuple
        self.window = window
        sendNext = SequenceNumber(UInt32.random(in: 0...UInt32.max, using: &random))
        receiveNext = SequenceNumber(UInt32.random(in: 0...UInt32.max, using: &random))
        timestampRecent = UInt32.random(in: 0...UInt32.max, using: &random)
    }

    /// What it says when it has something to say by itself.
    func speak(_ flags: TCPFlags = .ack, length: UInt32 = 0) -> ObservedSegment {
        ObservedSegment(
            tuple: tuple, sequence: sendNext.advanced(by: -Int(length) - (flags.contains(.syn) ? 1 : 0)),
            acknowledgement: receiveNext, flags: flags, window: 500, payloadLength: length,
            timestamps: traits.usesTimestamps ? TCPTimestamps(value: 77, echoReply: timestampRecent) : nil)
    }

    /// Takes a segment and returns its answer.
    mutating func receive(_ segment: TCPSegment, at now: UInt64) -> ObservedSegment? {
        received += 1
        guard segment.tuple == tuple.reversed, isAdmitted(segment) else { return nil }
        switch state {
        case .closed: return refusal(of: segment)
        case .synSent:
            // RFC 9293 section 3.10.7.3: an unacceptable acknowledgement draws a RST, a RST with one is dropped.
            return segment.acknowledgement == sendNext ? nil : refusal(of: segment)
        case .synReceived:
            if segment.flags.contains(.rst) {
                if segment.sequence == receiveNext { close() }
                return nil
            }
            return segment.acknowledgement == sendNext ? nil : refusal(of: segment)
        case .established: return receiveEstablished(segment, at: now)
        }
    }

    private mutating func receiveEstablished(_ segment: TCPSegment, at now: UInt64) -> ObservedSegment? {
        let end = segment.sequence.advanced(by: Int(segment.payloadLength))
        let isBeyond = receiveNext.distance(to: segment.sequence) > Int(window)
        let isOutside = end.precedes(receiveNext) || isBeyond
        if segment.flags.contains(.rst) {
            if traits.ignoresResets { return nil }
            if segment.sequence == receiveNext {
                close()
                return nil
            }
            return isOutside || segment.sequence.precedes(receiveNext) ? nil : limited(at: now)
        }
        if let stamps = segment.timestamps, traits.usesTimestamps {
            if Int32(bitPattern: stamps.value &- timestampRecent) < 0 {
                // PAWS: silent for old numbers.
                if traits.insistsOnTimestamps { return segment.payloadLength > 0 ? speak() : nil }
                return segment.sequence.precedes(receiveNext) ? nil : limited(at: now)
            }
        } else if traits.insistsOnTimestamps {
            return nil
        }
        if isOutside { return segment.payloadLength > 0 ? speak() : limited(at: now) }
        if sendNext.precedes(segment.acknowledgement) {
            return traits.answersTooNewAcknowledgement ? limited(at: now) : nil
        }
        if segment.acknowledgement.distance(to: sendNext) > Int(acknowledged) { return limited(at: now) }
        guard segment.payloadLength > 0 else { return nil }
        if !receiveNext.precedes(segment.sequence), receiveNext.precedes(end) {
            garbage += receiveNext.distance(to: end)
            receiveNext = end
        }
        return speak()
    }

    private func isAdmitted(_ segment: TCPSegment) -> Bool {
        guard traits.hasFirewall else { return true }
        return receiveNext.distance(to: segment.sequence) <= Int(window)
            && segment.acknowledgement.distance(to: sendNext) >= 0
    }

    private mutating func limited(at now: UInt64) -> ObservedSegment? {
        if traits.isLimited {
            if let lastLimited, now - lastLimited < 500_000_000 { return nil }
            lastLimited = now
        }
        return speak()
    }

    private func refusal(of segment: TCPSegment) -> ObservedSegment? {
        if segment.flags.contains(.rst) { return nil }
        return ObservedSegment(
            tuple: tuple, sequence: segment.acknowledgement, acknowledgement: SequenceNumber(0), flags: .rst, window: 0,
            payloadLength: 0)
    }

    private mutating func close() {
        state = .closed
        resets += 1
    }
}
