// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// What the kernel is told about a packet.
@frozen
public enum Ruling: UInt8, Hashable, Sendable {
    /// It goes on as it came.
    case accept
    /// It goes on with the octets as they are now.
    case acceptRewritten
    /// It goes on, and the kernel writes what the judgement's `mark` stands for.
    case acceptMarked
    case drop
    /// It waits for the control plane's decision.
    case hold
}

/// Why a packet was ruled as it was, for counters.
@frozen
public enum Note: UInt8, Hashable, Sendable, CaseIterable {
    /// A segment that a rule covers.
    case none
    /// No rule covers it: accepted.
    case unknownFlow
    /// An ICMP error about a flow that a rule covers.
    case icmp
    /// Neither TCP nor an ICMP error about TCP: accepted.
    case otherProtocol
    /// A fragment. Accepted, unless it is the first of a segment that a rule covers: without it the rest is never put
    /// together, while rewriting it alone would send the parts to different hosts.
    case fragment
    /// No host would take it: dropped, since what cannot be read cannot be kept from the wrong host otherwise.
    case malformed
    /// It must be rewritten, and the kernel's copy is not whole: dropped, since returning it would cut the packet.
    case truncated
    /// It must be translated to an address of the other family: dropped.
    case otherFamily
    /// The kernel is to translate it and has not been told how: dropped.
    case unmarked
}

/// What becomes of a packet, and what the control plane is told.
@frozen
public struct Judgement: Hashable, Sendable {
    public var ruling: Ruling
    /// The segment, when a rule stopped it (`drop`) or holds it (`hold`), when it opened the awaited connection, or when it is a SYN of a
    /// client whose destination was translated (any other ruling).
    public var observed: ObservedSegment?
    /// The kernel is to learn from this packet: the reply's four-tuple, when its destination was translated, and with treatment
    /// `mark` what to write into the next ones. It knows it from the SYN and forgets it without a reminder, so one packet in
    /// so many is enough.
    public var learns: Bool
    /// The mark of the translation that the kernel is to make; 0 for any ruling but `acceptMarked`.
    public var mark: UInt32
    public var note: Note

    @inlinable
    public init(
        _ ruling: Ruling, note: Note, observed: ObservedSegment? = nil, learns: Bool = false, mark: UInt32 = 0
    ) {
        self.ruling = ruling
        self.observed = observed
        self.learns = learns
        self.mark = mark
        self.note = note
    }
}

extension FlowTable {
    /// Rules on one packet (octets from the IP header on) queued at `stage`, and rewrites it in place where its rule
    /// says so. The packet is as it came unless the ruling is `acceptRewritten`. `isWhole` is false when the kernel's
    /// copy of the packet is shorter than the packet, which is enough of a segment where the kernel translates. Allocates
    /// nothing.
    ///
    /// An ICMP error is ruled by the flow opposite to the packet it quotes: the other direction's rule translates the
    /// destination, so the quoted source is that destination seen from the other side, and likewise for the source.
    @inlinable
    public mutating func judge(
        _ packet: inout MutableSpan<UInt8>, stage: Stage, checksum: ChecksumState, isWhole: Bool
    ) -> Judgement {
        switch Recognition(packet.span) {
        case .tcp(let tcp):
            return judge(tcp, &packet, stage: stage, checksum: checksum, isWhole: isWhole)
        case .icmpError(let error):
            return judge(error, &packet, stage: stage, checksum: checksum, isWhole: isWhole)
        case .fragment(let first):
            guard let first, covering(FlowKey(stage: stage, tuple: first.fourTuple(in: packet.span))) != nil
            else { return Judgement(.accept, note: .fragment) }
            return Judgement(.drop, note: .fragment)
        case .other:
            return Judgement(.accept, note: .otherProtocol)
        case .malformed:
            return Judgement(.drop, note: isWhole ? .malformed : .truncated)
        }
    }

    @inlinable @inline(__always)
    internal mutating func judge(
        _ tcp: TCPPacket, _ packet: inout MutableSpan<UInt8>, stage: Stage, checksum: ChecksumState, isWhole: Bool
    ) -> Judgement {
        guard let slot = covering(FlowKey(stage: stage, tuple: tcp.fourTuple(in: packet.span)))
        else { return Judgement(.accept, note: .unknownFlow) }
        let isWhole = isWhole && tcp.isWhole(in: packet.span)
        // Conntrack comes after prerouting. It holds the checksum of a packet that user space has returned, also of one
        // that is to be cut, against the packet as a whole (`nf_ip_checksum`), and calls it invalid if it is wrong.
        let checksum = stage == .prerouting && checksum == .segmented ? ChecksumState.pending : checksum
        switch rule(at: slot) {
        case .passage(let passage), .reconnected(let passage):
            guard tcp.flags(in: packet.span).contains(.syn) else {
                var judgement = pass(tcp, &packet, by: passage, checksum: checksum, isWhole: isWhole)
                if judgement.learns { judgement.learns = isReminderDue() }
                return judgement
            }
            let observed = tcp.observed(in: packet.span)
            var judgement = pass(tcp, &packet, by: passage, checksum: checksum, isWhole: isWhole)
            if judgement.learns, stage == .prerouting { judgement.observed = observed }
            return judgement
        case .freeze:
            return Judgement(.drop, note: .none, observed: tcp.observed(in: packet.span))
        case .holdSYN(let passage):
            guard tcp.flags(in: packet.span).opensConnection else {
                return pass(tcp, &packet, by: passage, checksum: checksum, isWhole: isWhole)
            }
            return Judgement(.hold, note: .none, observed: tcp.observed(in: packet.span))
        case .awaitDecision:
            let observed = tcp.observed(in: packet.span)
            return Judgement(observed.flags.opensConnection ? .hold : .drop, note: .none, observed: observed)
        case .awaitSYN(let passage):
            let observed = tcp.observed(in: packet.span)
            // A SYN or, on the host's side, a SYN-ACK.
            guard observed.flags.contains(.syn), !observed.flags.contains(.rst) else {
                return Judgement(.drop, note: .none, observed: observed)
            }
            var judgement = pass(tcp, &packet, by: passage, checksum: checksum, isWhole: isWhole)
            // A SYN that cannot pass opens nothing: the client sends it again.
            guard judgement.ruling != .drop else { return judgement }
            reconnect(at: slot)
            judgement.observed = observed
            return judgement
        }
    }

    /// Lets the kernel learn from so many more of the next packets from which it can, `limit` in all.
    @inlinable @inline(__always)
    public mutating func allowReminders(_ count: Int, limit: Int) { reminders = min(reminders + count, limit) }

    /// Whether it is time to let the kernel learn once more from a packet that says nothing new: as long as reminders are
    /// allowed, and otherwise a prime number of packets apart, so that no flow misses it by keeping step.
    @inlinable @inline(__always)
    internal mutating func isReminderDue() -> Bool {
        if reminders > 0 {
            reminders -= 1
            return true
        }
        sinceReminder = sinceReminder == 60 ? 0 : sinceReminder &+ 1
        return sinceReminder == 0
    }

    @inlinable @inline(__always)
    internal func pass(
        _ tcp: TCPPacket, _ packet: inout MutableSpan<UInt8>, by passage: Passage, checksum: ChecksumState,
        isWhole: Bool
    ) -> Judgement {
        switch passage {
        case .pass:
            return Judgement(.accept, note: .none)
        case .translateDestination(let endpoint, let clientPort) where treatment == .mark:
            var judgement = marked(tcp, packet.span, Translation(endpoint: endpoint, clientPort: clientPort))
            judgement.learns = judgement.ruling == .acceptMarked
            return judgement
        case .translateSource(let endpoint, let clientPort) where treatment == .mark:
            var judgement = marked(tcp, packet.span, Translation(endpoint: endpoint, clientPort: clientPort))
            judgement.learns = judgement.ruling == .acceptMarked
            return judgement
        case .translateDestination(let endpoint, let clientPort):
            guard isWhole else { return Judgement(.drop, note: .truncated) }
            guard tcp.rewriteDestination(to: endpoint, otherPort: clientPort, in: &packet, checksum: checksum)
            else { return Judgement(.drop, note: .otherFamily) }
            return Judgement(.acceptRewritten, note: .none, learns: true)
        case .translateSource(let endpoint, let clientPort):
            guard isWhole else { return Judgement(.drop, note: .truncated) }
            guard tcp.rewriteSource(to: endpoint, otherPort: clientPort, in: &packet, checksum: checksum)
            else { return Judgement(.drop, note: .otherFamily) }
            return Judgement(.acceptRewritten, note: .none)
        }
    }

    @inlinable @inline(__always)
    internal func marked(_ tcp: TCPPacket, _ packet: Span<UInt8>, _ translation: Translation) -> Judgement {
        guard tcp.fourTuple(in: packet).source.address.family == translation.endpoint.address.family
        else { return Judgement(.drop, note: .otherFamily) }
        let mark = marks.mark(translation, seed: seed)
        return mark == 0 ? Judgement(.drop, note: .unmarked) : Judgement(.acceptMarked, note: .none, mark: mark)
    }

    @inlinable
    internal func judge(
        _ error: ICMPErrorPacket, _ packet: inout MutableSpan<UInt8>, stage: Stage, checksum: ChecksumState,
        isWhole: Bool
    ) -> Judgement {
        let quoted = error.quotedTuple(in: packet.span)
        // An error goes back to whoever sent the packet it quotes; one that does not is about something else.
        guard error.ip.destination(in: packet.span) == quoted.source.address,
            let slot = covering(FlowKey(stage: stage, tuple: quoted.reversed))
        else { return Judgement(.accept, note: .unknownFlow) }
        let passage: Passage
        switch rule(at: slot) {
        case .freeze, .awaitSYN, .awaitDecision: return Judgement(.drop, note: .icmp)
        case .passage(let rule), .reconnected(let rule), .holdSYN(let rule): passage = rule
        }
        let isTranslated: Bool
        switch passage {
        case .pass:
            return Judgement(.accept, note: .icmp)
        case .translateDestination(let endpoint, let clientPort):
            guard isWhole, error.isWhole(in: packet.span) else { return Judgement(.drop, note: .truncated) }
            isTranslated = error.rewriteQuotedSource(
                to: endpoint, otherPort: clientPort, andDestination: true, in: &packet, checksum: checksum)
        case .translateSource(let endpoint, let clientPort):
            guard isWhole, error.isWhole(in: packet.span) else { return Judgement(.drop, note: .truncated) }
            // The host must not show itself; a router on the way to it speaks in its own name.
            let isFromHost = error.ip.source(in: packet.span) == quoted.destination.address
            isTranslated = error.rewriteQuotedDestination(
                to: endpoint, otherPort: clientPort, andSource: isFromHost, in: &packet, checksum: checksum)
        }
        return isTranslated ? Judgement(.acceptRewritten, note: .icmp) : Judgement(.drop, note: .otherFamily)
    }
}
