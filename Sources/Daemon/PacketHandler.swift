// SPDX-License-Identifier: GPL-3.0-or-later

public import NFQueueBridge
public import Rewriter
public import Wire

/// A change to a queue thread's flow table.
public enum FlowChange: Sendable {
    case set(FlowKey, FlowRule)
    case remove(FlowKey)
}

/// A SYN that waits for the control plane's decision.
@frozen
public struct HeldPacket: BitwiseCopyable, Hashable, Sendable {
    /// Which of the daemon's queues has it, from 0.
    public var queue: UInt16
    /// The kernel's number of the packet in that queue.
    public var number: UInt32

    @inlinable
    public init(queue: UInt16, number: UInt32) {
        self.queue = queue
        self.number = number
    }
}

/// What a queue thread tells the control plane.
@frozen
public struct Observation: BitwiseCopyable, Hashable, Sendable {
    public var segment: ObservedSegment
    /// Whether the segment went on; it was stopped, or is held, otherwise.
    public var hasPassed: Bool
    /// What is to be released, when the segment waits.
    public var held: HeldPacket?

    @inlinable
    public init(segment: ObservedSegment, hasPassed: Bool, held: HeldPacket? = nil) {
        self.segment = segment
        self.hasPassed = hasPassed
        self.held = held
    }

    /// Whether it is a SYN on its way to a host.
    public var opensConnection: Bool { hasPassed && segment.flags.opensConnection }
}

/// Joins the packets of a queue with the rules of a flow table: what the queue threads run. Allocates nothing and takes
/// no lock per packet; what the control plane must know goes through a ring.
public struct PacketHandler: VerdictHandler, ~Copyable {
    public typealias Message = FlowChange

    /// The netfilter hook of postrouting (NF_INET_POST_ROUTING).
    @usableFromInline static let postrouting: UInt8 = 4

    @usableFromInline var table: FlowTable
    @usableFromInline let observations: ObservationRing<Observation>
    /// The mark that makes chain `learn` remember the reply's four-tuple.
    @usableFromInline let mark: UInt32
    @usableFromInline let queue: UInt16
    /// Packets since the last batch ended.
    @usableFromInline var inBatch = 0
    /// A batch of so few packets says that there is time to let the kernel learn from every packet. A connection that sends a
    /// keepalive every two hours has no more than that to keep its learnt reply alive.
    @usableFromInline static let quietBatch = 4

    /// A handler that knows `flows` from the start; `seed` keeps its table's hash from being guessed; `queue` is the
    /// number of its queue among the daemon's, from 0.
    public init(
        observations: ObservationRing<Observation>, mark: UInt32, seed: UInt64, queue: UInt16 = 0,
        flows: [(key: FlowKey, rule: FlowRule)] = []
    ) {
        let narrow = flows.count { $0.key.tuple.source.address.family == .ipv4 }
        table = FlowTable(capacity: narrow + 1024, wideCapacity: flows.count - narrow, seed: seed)
        for flow in flows { table.set(flow.key, flow.rule) }
        self.observations = observations
        self.mark = mark
        self.queue = queue
    }

    @inlinable
    public mutating func verdict(for packet: inout MutableSpan<UInt8>, _ metadata: PacketMetadata) -> Verdict {
        inBatch &+= 1
        let stage: Stage = metadata.hook == Self.postrouting ? .postrouting : .prerouting
        let judgement = table.judge(
            &packet, stage: stage, checksum: metadata.checksum, isWhole: metadata.isWhole)
        if judgement.ruling == .hold {
            // A SYN that nobody would hear of would wait for ever; the client sends it again.
            guard let observed = judgement.observed else { return .drop }
            let held = HeldPacket(queue: queue, number: metadata.number)
            return observations.push(Observation(segment: observed, hasPassed: false, held: held)) ? .hold : .drop
        }
        if let observed = judgement.observed {
            observations.push(Observation(segment: observed, hasPassed: judgement.ruling != .drop))
        }
        switch judgement.ruling {
        case .accept: return .accept
        case .drop, .hold: return .drop
        case .acceptRewritten:
            return judgement.learnsReply ? .acceptRewritten(mark: mark) : .acceptRewritten
        }
    }

    public mutating func receive(_ message: FlowChange) {
        switch message {
        case .set(let key, let rule): table.set(key, rule)
        case .remove(let key): table.remove(key)
        }
    }

    @inlinable
    public mutating func endOfBatch() {
        if inBatch <= Self.quietBatch { table.remindSoon() }
        inBatch = 0
        observations.signal()
    }
}
