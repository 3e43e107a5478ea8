// SPDX-License-Identifier: GPL-3.0-or-later

internal import Synchronization

/// What a queue's thread has done since it began; a snapshot, whose fields may be apart by one batch.
///
/// `packets` = `accepted` + `dropped`, when no batch is being decided. A packet that is held counts when it is released.
public struct QueueCounters: Hashable, Sendable {
    /// Packets that waited for the control plane's decision, so far.
    public var held: UInt64 = 0
    /// Packets received from the kernel, each of which got one verdict.
    public var packets: UInt64 = 0
    /// Octets of these packets, from the IP header on, whether the kernel handed over all of them or not.
    public var octets: UInt64 = 0
    /// Packets accepted, rewritten or not.
    public var accepted: UInt64 = 0
    /// Packets accepted with changed octets, or with a mark by which the kernel changes them.
    public var rewritten: UInt64 = 0
    /// Packets dropped, by the handler or for want of anything better.
    public var dropped: UInt64 = 0
    /// Messages of the kernel's that could not be read. The packet in it is dropped when at least its number was there.
    public var malformed: UInt64 = 0
    /// Packets of which the kernel gave only the beginning, though all was asked for.
    public var truncated: UInt64 = 0
    /// Times that the receive buffer ran over (ENOBUFS); each time the kernel has dropped one packet or more.
    public var overruns: UInt64 = 0
    /// Verdicts that the kernel did not take: mostly the packet was gone (ENOENT) because a hook had been unregistered.
    public var verdictErrors: UInt64 = 0
    /// Batches of packets received.
    public var batches: UInt64 = 0
    /// Calls of the kernel for packets and verdicts: receive and send.
    public var systemCalls: UInt64 = 0

    public init() {}
}

/// The counters where they are kept: written by the queue's thread alone, read by any.
final class QueueCounterCells: Sendable {
    private let held = Atomic<UInt64>(0)
    private let packets = Atomic<UInt64>(0)
    private let octets = Atomic<UInt64>(0)
    private let accepted = Atomic<UInt64>(0)
    private let rewritten = Atomic<UInt64>(0)
    private let dropped = Atomic<UInt64>(0)
    private let malformed = Atomic<UInt64>(0)
    private let truncated = Atomic<UInt64>(0)
    private let overruns = Atomic<UInt64>(0)
    private let verdictErrors = Atomic<UInt64>(0)
    private let batches = Atomic<UInt64>(0)
    private let systemCalls = Atomic<UInt64>(0)

    var snapshot: QueueCounters {
        var counters = QueueCounters()
        counters.held = held.load(ordering: .relaxed)
        counters.packets = packets.load(ordering: .relaxed)
        counters.octets = octets.load(ordering: .relaxed)
        counters.accepted = accepted.load(ordering: .relaxed)
        counters.rewritten = rewritten.load(ordering: .relaxed)
        counters.dropped = dropped.load(ordering: .relaxed)
        counters.malformed = malformed.load(ordering: .relaxed)
        counters.truncated = truncated.load(ordering: .relaxed)
        counters.overruns = overruns.load(ordering: .relaxed)
        counters.verdictErrors = verdictErrors.load(ordering: .relaxed)
        counters.batches = batches.load(ordering: .relaxed)
        counters.systemCalls = systemCalls.load(ordering: .relaxed)
        return counters
    }

    /// Shows `counters` to the readers. With one writer, plain stores do, without the cost of atomic additions.
    func publish(_ counters: borrowing QueueCounters) {
        held.store(counters.held, ordering: .relaxed)
        packets.store(counters.packets, ordering: .relaxed)
        octets.store(counters.octets, ordering: .relaxed)
        accepted.store(counters.accepted, ordering: .relaxed)
        rewritten.store(counters.rewritten, ordering: .relaxed)
        dropped.store(counters.dropped, ordering: .relaxed)
        malformed.store(counters.malformed, ordering: .relaxed)
        truncated.store(counters.truncated, ordering: .relaxed)
        overruns.store(counters.overruns, ordering: .relaxed)
        verdictErrors.store(counters.verdictErrors, ordering: .relaxed)
        batches.store(counters.batches, ordering: .relaxed)
        systemCalls.store(counters.systemCalls, ordering: .relaxed)
    }
}
