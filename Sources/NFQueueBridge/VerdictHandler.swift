// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// What the kernel says about a queued packet, besides its octets.
@frozen
public struct PacketMetadata: Hashable, Sendable {
    /// The netfilter hook that queued it: NF_INET_PRE_ROUTING 0, LOCAL_IN 1, FORWARD 2, LOCAL_OUT 3, POST_ROUTING 4
    /// (linux/netfilter.h).
    public var hook: UInt8
    public var checksum: ChecksumState
    /// The packet's firewall mark (skb->mark); 0 when it has none.
    public var mark: UInt32
    /// Whether all octets of the packet are here. A packet longer than 65531 octets, the most that a netlink attribute
    /// holds, comes cut; it can be accepted or dropped, but not rewritten.
    public var isWhole: Bool
    /// The kernel's number of the packet in its queue: what `QueueThread.release` names it by.
    public var number: UInt32

    @inlinable
    public init(hook: UInt8, checksum: ChecksumState, mark: UInt32, isWhole: Bool, number: UInt32 = 0) {
        self.hook = hook
        self.checksum = checksum
        self.mark = mark
        self.isWhole = isWhole
        self.number = number
    }
}

/// What becomes of one queued packet.
@frozen
public struct Verdict: Hashable, Sendable {
    /// The kernel's verdicts, with its numbers (NF_DROP, NF_ACCEPT, NF_REPEAT), and none.
    @frozen
    public enum Decision: UInt8, Hashable, Sendable {
        case drop = 0
        case accept = 1
        /// The packet begins once more with the chain that queued it.
        case `repeat` = 4
        /// No verdict yet: the packet waits in the kernel until `QueueThread.release`.
        case hold = 255
    }

    public var decision: Decision
    /// Whether the packet's octets were changed and go back to the kernel in place of the old ones. Counts only where the
    /// packet goes on; a rewritten packet that was not whole is dropped, as the kernel would send on the part.
    public var rewritten: Bool
    /// The firewall mark that the packet goes on with; nil leaves it as it was.
    public var mark: UInt32?

    @inlinable
    public init(decision: Decision, rewritten: Bool = false, mark: UInt32? = nil) {
        self.decision = decision
        self.rewritten = rewritten
        self.mark = mark
    }

    /// The packet goes on as it came.
    @inlinable public static var accept: Verdict { Verdict(decision: .accept) }
    /// The packet is gone.
    @inlinable public static var drop: Verdict { Verdict(decision: .drop) }
    /// The packet waits for `QueueThread.release`.
    @inlinable public static var hold: Verdict { Verdict(decision: .hold) }
    /// The packet goes on with the octets that the handler left in the span.
    @inlinable public static var acceptRewritten: Verdict { Verdict(decision: .accept, rewritten: true) }

    /// The packet goes on as it came, with this firewall mark.
    @inlinable public static func accept(mark: UInt32) -> Verdict { Verdict(decision: .accept, mark: mark) }
}

/// Decides about the packets of one queue. One value of it lives on each queue's thread and is called there only; it must
/// neither allocate nor wait in `verdict`.
public protocol VerdictHandler: ~Copyable, SendableMetatype {
    /// A change that the control plane sends.
    associatedtype Message: Sendable

    /// Decides about one packet and, for `.acceptRewritten`, changes it in place. `packet` holds the octets from the IP
    /// header on, as on the wire, and is never empty; its length cannot change.
    mutating func verdict(for packet: inout MutableSpan<UInt8>, _ metadata: PacketMetadata) -> Verdict

    /// Takes one change, between two batches: every packet received later is decided with it. May allocate.
    mutating func receive(_ message: Message)

    /// The kernel has carried out the verdicts of a batch of packets; the place to tell the control plane of them, once.
    /// `time`: nanoseconds of a clock that never goes back, exact to a few milliseconds.
    mutating func endOfBatch(at time: UInt64)
}
