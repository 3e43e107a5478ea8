// SPDX-License-Identifier: GPL-3.0-or-later

public import NFQueueBridge
public import Rewriter
public import Ruleset
public import Wire

/// A change to a queue thread's flow table.
public enum FlowChange: Sendable {
    case set(FlowKey, FlowRule)
    case remove(FlowKey)
    /// The kernel knows this translation by this mark; 0: by none any more.
    case mark(UInt32, of: Translation)
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
    /// The gateway's mark, which brings a packet back to the chain that queued it.
    @usableFromInline let mark: UInt32
    @usableFromInline let queue: UInt16
    /// Until when reminders have been allowed.
    @usableFromInline var remindedUntil: UInt64 = 0
    /// The kernel may learn anew from one packet in so many nanoseconds: from every packet while few come. A connection that
    /// sends a keepalive every two hours has no more than that to keep its learnt reply alive; in a flood, learning costs.
    @usableFromInline static let reminderInterval: UInt64 = 1_000_000
    /// How many reminders a pause is worth.
    @usableFromInline static let mostReminders = 64

    /// A handler that knows `flows`, and the kernel's marks for their translations, from the start; `seed` keeps its table's
    /// hash from being guessed; `queue` is the number of its queue among the daemon's, from 0.
    public init(
        observations: ObservationRing<Observation>, mark: UInt32, seed: UInt64, queue: UInt16 = 0,
        treatment: Treatment = .rewrite, marks: [Translation: UInt32] = [:],
        flows: [(key: FlowKey, rule: FlowRule)] = []
    ) {
        let narrow = flows.count { $0.key.tuple.source.address.family == .ipv4 }
        table = FlowTable(
            capacity: narrow + 1024, wideCapacity: flows.count - narrow, seed: seed, treatment: treatment)
        for (translation, mark) in marks { table.setMark(mark, of: translation) }
        for flow in flows { table.set(flow.key, flow.rule) }
        self.observations = observations
        self.mark = mark
        self.queue = queue
    }

    @inlinable
    public mutating func verdict(for packet: inout MutableSpan<UInt8>, _ metadata: PacketMetadata) -> Verdict {
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
            // Nobody waits for a SYN that has passed: what it tells is needed when the control plane does something next.
            let observation = Observation(segment: observed, hasPassed: judgement.ruling != .drop)
            observations.push(observation, isUrgent: !observation.opensConnection)
        }
        switch judgement.ruling {
        case .accept: return .accept
        case .drop, .hold: return .drop
        case .acceptRewritten:
            guard judgement.learns else { return .acceptRewritten }
            return Verdict(decision: .repeat, rewritten: true, mark: mark | MarkLayout.learns)
        case .acceptMarked:
            let learns = judgement.learns ? MarkLayout.learns : 0
            return Verdict(decision: .repeat, mark: mark | learns | judgement.mark)
        }
    }

    public mutating func receive(_ message: FlowChange) {
        switch message {
        case .set(let key, let rule): table.set(key, rule)
        case .remove(let key): table.remove(key)
        case .mark(let mark, let translation): table.setMark(mark, of: translation)
        }
    }

    @inlinable
    public mutating func endOfBatch(at time: UInt64) {
        if time > remindedUntil {
            let count = Int(clamping: (time - remindedUntil) / Self.reminderInterval)
            if count > 0 {
                table.allowReminders(min(count, Self.mostReminders), limit: Self.mostReminders)
                remindedUntil = time
            }
        }
        observations.signal()
    }
}
