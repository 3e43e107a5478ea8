// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// The state that conntrack gives a TCP connection (`enum tcp_conntrack`, linux/netfilter/nf_conntrack_tcp.h).
@frozen
public enum TCPState: UInt8, Hashable, Sendable, CaseIterable {
    case none, synSent, synReceived, established, finWait, closeWait, lastAck, timeWait, close, synSent2
}

/// Packets and octets of one direction.
@frozen
public struct TrafficCount: Hashable, Sendable {
    public var packets: UInt64
    public var octets: UInt64

    @inlinable
    public init(packets: UInt64, octets: UInt64) {
        self.packets = packets
        self.octets = octets
    }
}

/// One TCP connection as conntrack knows it.
///
/// `original` is what the initiator sends, before any translation; `reply` is what the responder sends, before its
/// translation is undone. So on the wire the initiator's side has `original` and its reverse, the responder's side has
/// `reply` and its reverse.
public struct ConnectionEntry: Hashable, Sendable {
    public var original: FourTuple
    public var reply: FourTuple
    /// Absent in events that do not concern the state, and when an entry has gone.
    public var state: TCPState?
    /// Whether the initiator has sent the first FIN (IP_CT_TCP_FLAG_CLOSE_INIT of the original direction). The state alone
    /// does not tell: a FIN that the other side repeats leads to `lastAck` too.
    public var isClosedByInitiator: Bool
    /// The conntrack zone; 0 where zones are not used.
    public var zone: UInt16
    public var mark: UInt32
    /// Seconds until the entry ends without a further packet.
    public var timeout: UInt32
    /// Tells this entry from a later one of the same tuple (CTA_ID). Opaque.
    public var id: UInt32
    /// The bits of `enum ip_conntrack_status` (linux/netfilter/nf_conntrack_common.h).
    public var status: UInt32
    /// Present when the kernel counts (net.netfilter.nf_conntrack_acct=1).
    public var originalCount: TrafficCount?
    public var replyCount: TrafficCount?
    /// When the connection began, in nanoseconds since 1970; present when the kernel recorded it then
    /// (net.netfilter.nf_conntrack_timestamp=1).
    public var startedAt: UInt64?

    public init(
        original: FourTuple, reply: FourTuple, state: TCPState? = nil, isClosedByInitiator: Bool = false,
        zone: UInt16 = 0, mark: UInt32 = 0,
        timeout: UInt32 = 0, id: UInt32 = 0, status: UInt32 = 0, originalCount: TrafficCount? = nil,
        replyCount: TrafficCount? = nil
    ) {
        self.original = original
        self.reply = reply
        self.state = state
        self.isClosedByInitiator = isClosedByInitiator
        self.zone = zone
        self.mark = mark
        self.timeout = timeout
        self.id = id
        self.status = status
        self.originalCount = originalCount
        self.replyCount = replyCount
    }

    /// Whether an answer has been seen (IPS_SEEN_REPLY).
    public var hasReply: Bool { status & 1 << 1 != 0 }
    /// Whether conntrack considers the connection set up in both directions (IPS_ASSURED).
    public var isAssured: Bool { status & 1 << 2 != 0 }
    /// Whether the destination is translated: the answers come from elsewhere than the initiator addresses.
    public var isDestinationTranslated: Bool { reply.source != original.destination }
    /// Whether the source is translated: the answers go elsewhere than to the initiator.
    public var isSourceTranslated: Bool { reply.destination != original.source }
}
