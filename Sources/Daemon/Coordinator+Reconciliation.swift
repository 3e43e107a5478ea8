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
        var shared = SharedElements()
        for session in sessions {
            shared.forEachElement(of: session) { element, lifetime in
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
        var reckoning = try reckon(comparison)
        var batch = JournalBatch()
        batch.sessions = given
        var left: Set<FlowKey> = []
        var dropped: Set<TableElement> = []
        for (old, session) in comparison == .nothing ? [] : changes(to: reckoning) {
            if session.transits.count != old.transits.count { batch.sessions.append(session) }
            sessions[old.key] = session.isIdle ? nil : session
            let elements = session.elements()
            for element in old.elements().keys where elements[element] == nil {
                if element.isShared { dropped.insert(element) } else { reckoning.refuse(element) }
            }
            for (element, lifetime) in elements where comparison == .everything || element.isLearnt {
                reckoning.want(element, lifetime: lifetime)
            }
            let flows = session.flows()
            left.formUnion(old.flows().keys.filter { flows[$0] == nil })
        }
        for session in sessions.values {
            if !session.transits.isEmpty { scheduleExpiry(of: session, since: Session(key: session.key)) }
            if !left.isEmpty { session.forEachFlow { key, _ in left.remove(key) } }
        }
        gateway.adopt(sessions.values)
        try journal.write(batch)
        // What only an ended transit needed; of these nothing was read unless everything was.
        dropped = dropped.filter { !gateway.isWanted($0) }
        for element in dropped { reckoning.refuse(element) }
        var change = TableChange()
        change.remove = reckoning.surplus.union(dropped).filter {
            comparison == .everything || dropped.contains($0) || $0.isLearnt || $0.isOfTranslation
        }
        change.add = reckoning.missing
        if comparison == .everything {
            // The daemon before may have ended between any two steps, and others may have changed the table.
            change.forgetsAll = true
            change.renewsEntrances = true
        }
        if !change.isEmpty { try gateway.table.apply(change) }
        logger.notice(
            "\(sessions.count) sessions; table: \(change.add.count) elements added, \(change.remove.count) removed",
            metadata: ["compared": "\(comparison)"])
        return left
    }

    /// Holds what the sessions want, of that which is compared, against what the table holds of it, and of those transits
    /// of the sessions that still stand.
    private func reckon(_ comparison: TableComparison) throws -> TableReckoning {
        var reckoning = TableReckoning()
        if comparison == .nothing { return reckoning }
        // Which of them there are has been found out anew.
        for element in gateway.translationElements { reckoning.want(element, lifetime: nil) }
        if comparison == .everything { reckoning.reserve(2 * sessions.count) }
        var shared = SharedElements()
        for session in sessions.values {
            shared.forEachElement(of: session) { element, lifetime in
                if comparison == .everything || element.isLearnt { reckoning.want(element, lifetime: lifetime) }
            }
        }
        switch comparison {
        case .nothing: break
        case .everything:
            try gateway.table.forEachElement { reckoning.find($0) ? .known : .unknown }
        case .learnt:
            for element in try gateway.table.learntElements() { reckoning.find(element) }
            for element in try gateway.table.translations() { reckoning.find(element) }
            for session in sessions.values {
                for (tuple, standing) in session.transits {
                    let element = standing.element(tuple)
                    if try gateway.table.holds(element) { reckoning.find(element) }
                }
            }
        }
        return reckoning
    }

    /// The sessions that are not what the table says.
    private func changes(to reckoning: TableReckoning) -> [(from: Session, to: Session)] {
        let learnt = LearntReplies(reckoning.present(where: \.isLearnt))
        var changes: [(from: Session, to: Session)] = []
        for old in sessions.values {
            let mayHaveLearnt = old.binding?.datapath == .queue && !learnt.isEmpty
            if old.transits.isEmpty && old.replies.isEmpty && !mayHaveLearnt { continue }
            var session = old
            // The kernel's clock has gone on: what it no longer holds is over. A new kernel has no old connections.
            for (tuple, standing) in session.transits where !reckoning.isPresent(standing.element(tuple)) {
                session.transits[tuple] = nil
            }
            if !session.replies.isEmpty {
                session.replies = session.replies.filter { reckoning.isPresent(.reply($0)) }
            }
            session.replies.formUnion(sessions.replies(of: session, among: learnt))
            if !session.transits.isEmpty {
                session.replies.formUnion(session.trailingReplies.filter { reckoning.isPresent(.reply($0)) })
            }
            if session != old { changes.append((old, session)) }
        }
        return changes
    }
}
