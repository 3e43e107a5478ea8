// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Conntrack
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Rewriter
internal import Ruleset
internal import Spoofer
internal import Wire

/// The kernel handles of the daemon, each opened once: the table, the queues, conntrack, the raw sockets. Confined to
/// the event loop's thread.
final class Gateway {
    let table: NetfilterTable
    let conntrack: ConntrackTable
    let sockets: SegmentSocket
    /// How the queues are set up.
    private(set) var options = QueueOptions()
    private(set) var queues: [QueueThread<PacketHandler>] = []
    private(set) var rings: [ObservationRing<Observation>] = []
    /// Elements that several sessions share, with the number of sessions that want them.
    private var shared: [TableElement: Int] = [:]

    init(_ configuration: Configuration) throws {
        table = try NetfilterTable(Self.rulesetOptions(configuration))
        conntrack = try ConntrackTable()
        sockets = try SegmentSocket(mark: configuration.mark)
    }

    static func rulesetOptions(_ configuration: Configuration) -> RulesetOptions {
        RulesetOptions(
            mark: configuration.mark, firstQueue: configuration.firstQueue, queueCount: configuration.queues)
    }

    /// Binds the queues and starts their threads, each knowing `flows` before its first packet.
    func startQueues(_ configuration: Configuration, flows: [(key: FlowKey, rule: FlowRule)]) throws {
        var generator = SystemRandomNumberGenerator()
        options.maximumLength = configuration.queueLength
        options.sizeBuffers(mtu: Int(nfqmig_largest_mtu()))
        let options = options
        for index in 0..<configuration.queues {
            let ring = try ObservationRing<Observation>(capacity: 4096)
            let seed = generator.next()
            let mark = configuration.mark
            let thread = try QueueThread<PacketHandler>(queue: configuration.firstQueue + index, options: options) {
                PacketHandler(observations: ring, mark: mark, seed: seed, queue: index, flows: flows)
            }
            rings.append(ring)
            queues.append(thread)
        }
    }

    func stopQueues() {
        for queue in queues { queue.stop() }
        queues = []
    }

    /// Brings flow rules and table to what `change` says: what is stopped in user space first, then the kernel in one
    /// transaction, then what user space may forget. When the kernel refuses, user space is as before.
    func install(_ change: SessionChange, undoneBy undo: @autoclosure () -> SessionChange) throws {
        do {
            try post(change.setFlows.map { .set($0.key, $0.rule) })
            let tableChange = claim(change)
            do {
                try table.apply(tableChange)
            } catch {
                release(change)
                throw error
            }
        } catch {
            let undo = undo()
            // Every thread is told, also when one of them does not answer.
            let undoing: [FlowChange] =
                undo.setFlows.map { .set($0.key, $0.rule) } + removals(undo)
            for queue in queues { try? queue.post(undoing) }
            throw error
        }
        try post(removals(change))
    }

    /// What user space may forget: not the rule that holds a client's SYNs while other sessions need it.
    private func removals(_ change: SessionChange) -> [FlowChange] {
        change.removedFlows.compactMap { key in
            let (client, home) = (key.tuple.source, key.tuple.destination)
            let isCredit = key.stage == .prerouting && client.port == 0
            let isShared = isCredit && shared[.credit(client: client.address, home: home)] != nil
            return isShared ? nil : .remove(key)
        }
    }

    /// Only for a daemon that starts: counts what the sessions share, without changing the table.
    func adopt(_ elements: some Sequence<TableElement>) {
        for element in elements where element.isShared { shared[element, default: 0] += 1 }
    }

    /// Sends flow changes to every queue thread and waits until all have taken them.
    func post(_ changes: [FlowChange]) throws {
        if changes.isEmpty { return }
        for queue in queues { try queue.post(changes) }
    }

    /// The table change for a session's change: an element that another session needs as well stays.
    private func claim(_ change: SessionChange) -> TableChange {
        var tableChange = TableChange()
        for element in change.removedElements where !element.isShared || decrement(element) == 0 {
            tableChange.remove.append(element)
        }
        for (element, lifetime) in change.addedElements where !element.isShared || increment(element) == 1 {
            tableChange.add.append(.init(element: element, lifetime: lifetime))
        }
        return tableChange
    }

    private func release(_ change: SessionChange) {
        for element in change.removedElements where element.isShared { _ = increment(element) }
        for (element, _) in change.addedElements where element.isShared { _ = decrement(element) }
    }

    private func increment(_ element: TableElement) -> Int {
        let count = shared[element, default: 0] + 1
        shared[element] = count
        return count
    }

    private func decrement(_ element: TableElement) -> Int {
        let count = max(0, shared[element, default: 0] - 1)
        shared[element] = count == 0 ? nil : count
        return count
    }
}

extension TableElement {
    /// Whether several sessions can want the same element.
    var isShared: Bool {
        switch self {
        case .icmpHome, .icmpPeer, .credit: true
        default: false
        }
    }
}
