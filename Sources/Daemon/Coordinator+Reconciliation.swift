// SPDX-License-Identifier: GPL-3.0-or-later

internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Rewriter
internal import Ruleset
internal import Wire

/// What of the table a daemon that starts has to hold against its sessions.
enum TableComparison: String {
    /// It has just been made from them.
    case nothing
    /// What packets fill and time-outs remove: nobody has changed the rest since journal and table agreed.
    case learnt
    case everything
}

extension Coordinator {
    /// All that the table is to hold for sessions. What several share is there once.
    func additions(for sessions: some Sequence<Session>) -> [TableChange.Addition] {
        var additions: [TableChange.Addition] = []
        additions.reserveCapacity(2 * sessions.underestimatedCount)
        var shared: Set<TableElement> = []
        for session in sessions {
            session.forEachElement { element, lifetime in
                if element.isShared, !shared.insert(element).inserted { return }
                additions.append(TableChange.Addition(element: element, lifetime: lifetime))
            }
        }
        additions += gateway.translationElements.map { TableChange.Addition(element: $0) }
        return additions
    }

    /// The same, with what a table that is to be replaced has learnt for them, which `learnt` is afterwards. One that is not
    /// there, or has other sets, has learnt nothing.
    func additions(for sessions: [Session], keeping learnt: inout Set<TableElement>) -> [TableChange.Addition] {
        learnt = (try? gateway.table.learntElements()) ?? []
        if learnt.isEmpty { return additions(for: sessions) }
        var table = SessionTable(sessions)
        table.learn(from: learnt)
        return additions(for: table.values)
    }

    /// How much of an adopted table has to be compared, and from when on it is known.
    func comparison(after end: OrderlyEnd?) throws -> TableComparison {
        let generation = try gateway.table.readGeneration()
        gateway.table.keepTrack(from: generation)
        // Each transit is asked for by itself: beyond some thousand of them a list costs less.
        let transits = sessions.values.reduce(0) { $0 + $1.transits.count }
        return end != nil && end == OrderlyEnd(generation: generation) && transits < 2000 ? .learnt : .everything
    }

    /// Leaves word for the next daemon when it is certain that journal and table agree.
    func writeOrderlyEnd() {
        guard isReconciled, let generation = gateway.table.generation else { return }
        do {
            guard try gateway.table.readGeneration() == generation, let end = OrderlyEnd(generation: generation) else {
                return
            }
            try journal.write(end)
        } catch {
            logger.error("\(error)")
        }
    }

    /// Makes sessions and table agree: what the table has learnt or let go since the journal was written, and what it holds
    /// too much or too little. Writes the sessions that this changes, and those given, and returns the flows that the queue
    /// threads need no more.
    func reconcile(_ comparison: TableComparison, writing given: [Session]) throws -> Set<FlowKey> {
        if comparison == .nothing { gateway.table.keepTrack(from: gateway.table.latestGeneration) }
        var wanted = wantedElements(comparison)
        let present = try presentElements(comparison) { wanted[$0] != nil }
        var batch = JournalBatch()
        batch.sessions = given
        var left: Set<FlowKey> = []
        var dropped: Set<TableElement> = []
        for (old, session) in comparison == .nothing ? [] : changes(to: present) {
            if session.transits.count != old.transits.count { batch.sessions.append(session) }
            sessions[old.key] = session.isIdle ? nil : session
            let elements = session.elements()
            for element in old.elements().keys where elements[element] == nil {
                if element.isShared { dropped.insert(element) } else { wanted[element] = nil }
            }
            if comparison == .everything {
                wanted.merge(elements) { first, _ in first }
            } else {
                for (element, lifetime) in elements where element.isLearnt { wanted[element] = .some(lifetime) }
            }
            let flows = session.flows()
            left.formUnion(old.flows().keys.filter { flows[$0] == nil })
        }
        for session in sessions.values {
            if !session.transits.isEmpty { scheduleExpiry(of: session, since: Session(key: session.key)) }
            if !left.isEmpty { session.forEachFlow { key, _ in left.remove(key) } }
            gateway.adopt(session)
        }
        try journal.write(batch)
        // What only an ended transit needed; of these nothing was read unless everything was.
        dropped = dropped.filter { !gateway.isWanted($0) }
        for element in dropped { wanted[element] = nil }
        var change = TableChange()
        change.remove = present.union(dropped).filter {
            wanted[$0] == nil
                && (comparison == .everything || dropped.contains($0) || $0.isLearnt || $0.isOfTranslation)
        }
        change.add = wanted.filter { !present.contains($0.key) }.map { .init(element: $0.key, lifetime: $0.value) }
        if !change.isEmpty { try gateway.table.apply(change) }
        logger.notice(
            "\(sessions.count) sessions; table: \(change.add.count) elements added, \(change.remove.count) removed",
            metadata: ["compared": "\(comparison)"])
        return left
    }

    /// What the sessions want of that which is compared.
    private func wantedElements(_ comparison: TableComparison) -> [TableElement: UInt32?] {
        var wanted: [TableElement: UInt32?] = [:]
        if comparison == .nothing { return wanted }
        // Which of them there are has been found out anew.
        for element in gateway.translationElements { wanted[element] = .some(nil) }
        if comparison == .everything { wanted.reserveCapacity(2 * sessions.count) }
        for session in sessions.values {
            session.forEachElement { element, lifetime in
                guard comparison == .everything || element.isLearnt else { return }
                if wanted[element] == nil { wanted[element] = .some(lifetime) }
            }
        }
        return wanted
    }

    /// What the table holds of that which is compared, and those transits of the sessions that still stand.
    private func presentElements(
        _ comparison: TableComparison, expecting isExpected: (TableElement) -> Bool
    ) throws -> Set<TableElement> {
        switch comparison {
        case .nothing: return []
        case .everything: return try gateway.table.elements(expecting: isExpected)
        case .learnt:
            var present = try gateway.table.learntElements().union(gateway.table.translations())
            for session in sessions.values {
                for (tuple, standing) in session.transits {
                    let element = standing.element(tuple)
                    if try gateway.table.holds(element) { present.insert(element) }
                }
            }
            return present
        }
    }

    /// The sessions that are not what the table says.
    private func changes(to present: Set<TableElement>) -> [(from: Session, to: Session)] {
        let learnt = LearntReplies(present)
        var changes: [(from: Session, to: Session)] = []
        for old in sessions.values {
            let mayHaveLearnt = old.binding?.datapath == .queue && !learnt.isEmpty
            if old.transits.isEmpty && old.replies.isEmpty && !mayHaveLearnt { continue }
            var session = old
            // The kernel's clock has gone on: what it no longer holds is over. A new kernel has no old connections.
            for (tuple, standing) in session.transits where !present.contains(standing.element(tuple)) {
                session.transits[tuple] = nil
            }
            if !session.replies.isEmpty {
                session.replies = session.replies.filter { present.contains(.reply($0)) }
            }
            session.replies.formUnion(sessions.replies(of: session, among: learnt))
            if !session.transits.isEmpty {
                session.replies.formUnion(session.trailingReplies.filter { present.contains(.reply($0)) })
            }
            if session != old { changes.append((old, session)) }
        }
        return changes
    }
}
