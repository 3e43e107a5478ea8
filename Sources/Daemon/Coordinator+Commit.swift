// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Rewriter
internal import Ruleset
internal import Spoofer
internal import Wire

/// What has been decided in one turn of the event loop and is not yet in the kernel.
///
/// All of it is carried out together when the turn ends: one journal transaction, one message to each queue thread, one
/// transaction of the table, however many migrations it is for. The order that each migration depends on stays: frozen in
/// every queue thread, then the table, then conntrack's entry deleted, and only then a SYN passes and challenges go out.
struct PendingWork {
    /// A migration's switch: the session before and after.
    struct Switch {
        let running: RunningMigration
        let from: Session
        let to: Session
    }

    /// In the order of their decision; at most one for a session.
    var switches: [Switch] = []
    var switching: Set<SessionKey> = []
    /// What their hosts are to have from them, as `Session.hostSide` says.
    var hostSides: [FourTuple: SessionKey] = [:]
    var forgets: [(running: RunningMigration, connections: [LocatedConnection])] = []
    /// Sessions that have changed since, each as the kernel has it. Their switches are behind them: there is no way back.
    var changed: [SessionKey: Session] = [:]
    /// Sessions whose way has been opened behind the switch. The journal knows that from their migrations' stage.
    var released: [SessionKey: Session] = [:]
    /// Migrations that the journal need not remember.
    var settled: [UInt64] = []
    /// What has become of drains' sessions.
    var turns: [JournaledTurn] = []
    /// The first challenges of handshakes, to be sent when the SYNs of their clients may pass.
    var challenges: [TCPSegment] = []

    var isEmpty: Bool {
        switches.isEmpty && forgets.isEmpty && changed.isEmpty && settled.isEmpty && turns.isEmpty && challenges.isEmpty
    }
}

extension Coordinator {
    /// Carries out what is pending until nothing is.
    func commit() {
        guard !isCommitting else { return }
        isCommitting = true
        defer { isCommitting = false }
        while !pending.isEmpty {
            commitChanges()
            let challenges = pending.challenges
            pending.challenges = []
            send(challenges)
            commitSwitches()
            commitForgets()
        }
        gateway.tidyTranslations(nothingIsLeft: sessions.count == 0) {
            Set(sessions.values.flatMap { $0.flows().values.compactMap(\.translation) })
        }
    }

    /// Commits first what is to be known before somebody looks at or changes this session.
    func commit(before key: SessionKey) {
        if !pending.switching.isEmpty, pending.switching.contains(key) { commit() }
    }

    // MARK: - The switch

    /// Decides on a switch; `installed` or `installFailed` follows.
    func decide(switch running: RunningMigration, from: Session, to: Session) {
        running.before = from
        add(.init(running: running, from: from, to: to))
    }

    private func add(_ decided: PendingWork.Switch) {
        pending.switches.append(decided)
        pending.switching.insert(decided.to.key)
        if let tuple = decided.to.hostSide ?? decided.to.homeSide { pending.hostSides[tuple] = decided.to.key }
    }

    private func commitSwitches() {
        let decided = pending.switches
        pending.switches = []
        pending.switching = []
        pending.hostSides = [:]
        if decided.isEmpty { return }
        // One four-tuple has one treatment: what two sessions want comes one after the other.
        var tuples: Set<FourTuple> = []
        var batch: [PendingWork.Switch] = []
        for each in decided {
            guard tuples.isDisjoint(with: each.to.transits.keys) else {
                add(each)
                continue
            }
            tuples.formUnion(each.to.transits.keys)
            batch.append(each)
        }
        do {
            try openEvents()
            try journal.write(stage: batch.map { (journaled($0.running, .switching), $0.to) })
            for each in batch {
                awaitingReconnect.insert(each.running.machine.id, each.to.key)
                clearWay(for: each.to)
            }
            commitChanges()
        } catch {
            for each in batch { switchFailed(each, error) }
            return
        }
        var done: [PendingWork.Switch] = []
        var failed: [(PendingWork.Switch, any Error)] = []
        // Somebody else may have changed a session meanwhile.
        var (current, stale): ([PendingWork.Switch], [PendingWork.Switch]) = ([], [])
        for each in batch {
            if let each = asOfNow(each) { current.append(each) } else { stale.append(each) }
        }
        do {
            try install(current.map { (from: $0.from, to: $0.to) })
            done = current
        } catch {
            // All or nothing: one that cannot be made must not hold up the others.
            for each in current {
                do {
                    try change(each.from, each.to)
                    done.append(each)
                } catch {
                    failed.append((each, error))
                }
            }
        }
        if !done.isEmpty { discardOpenings(of: done.map(\.to)) }
        for each in done { switched(each) }
        for each in done { advance(each.running, .installed) }
        for (each, error) in failed { switchFailed(each, error) }
        for each in stale { switchFailed(each, OvertakenChange()) }
    }

    /// The switch from the session as it is now, if it can be made from there.
    private func asOfNow(_ each: PendingWork.Switch) -> PendingWork.Switch? {
        let now = sessions[each.to.key] ?? Session(key: each.from.key, id: each.from.id)
        if now == each.from { return each }
        guard let to = each.to.rebased(from: each.from, onto: now) else { return nil }
        logger.notice("the session has changed since the switch was decided", metadata: each.running.metadata)
        each.running.before = now
        do {
            try journal.write(stage: [(journaled(each.running, .switching), to)])
        } catch {
            logger.error("\(error)")
            return nil
        }
        return PendingWork.Switch(running: each.running, from: now, to: to)
    }

    private func switched(_ each: PendingWork.Switch) {
        let running = each.running
        let key = each.to.key
        settle(each.to, since: each.from)
        if let previous = latest[key].flatMap({ migrations[$0] }), !previous.machine.isFinished {
            advance(previous, .superseded)
        }
        latest[key] = running.machine.id
        preparing[key] = nil
        standing[key, default: []].insert(running.machine.id)
        running.switchedAt = EventLoop.wallClock
        running.note("switched", "\(each.from.host) → \(each.to.host)")
        if let port = each.to.binding?.sourcePort {
            running.note("source translated", "\(each.to.key.clientEndpoint) is port \(port) at \(each.to.host)")
        }
        running.isUnderWay = true
        beginLifetime(of: running)
        runHooks(at: .switched, of: running)
    }

    private func switchFailed(_ each: PendingWork.Switch, _ error: any Error) {
        logger.error("the change was refused: \(error)", metadata: each.running.metadata)
        awaitingReconnect.remove(each.running.machine.id)
        let now = sessions[each.to.key] ?? Session(key: each.to.key, id: each.from.id)
        var batch = JournalBatch()
        batch.sessions = [now]
        batch.forgotten = [each.running.machine.id]
        try? journal.write(batch)
        settleWatches(around: each.to.key)
        each.running.machine.adopt(now)
        advance(each.running, .installFailed(reason: "\(error)"))
    }

    // MARK: - The point of no return

    private func commitForgets() {
        let forgets = pending.forgets
        pending.forgets = []
        if forgets.isEmpty { return }
        do {
            // Of the sessions it knows since the switch.
            var batch = JournalBatch()
            batch.migrations = forgets.map { journaled($0.running, .resetting) }
            try journal.write(batch)
        } catch {
            logger.error("\(error)")
        }
        let entries = forgets.flatMap { each in
            each.connections.compactMap { each.running.entries[$0.clientSide] } + each.running.closed
        }
        for error in gateway.conntrack.delete(entries) { logger.error("\(error)") }
        for (running, connections) in forgets {
            // What was given to the session had arrived: now it is owed another one.
            if !connections.isEmpty { given[running.machine.session.id] = nil }
            running.note(
                "forgotten", "conntrack's \(connections.count == 1 ? "entry" : "\(connections.count) entries")")
            // Something else that has changed is written with it.
            let isAlone = pending.changed[running.machine.session.key] == nil
            advance(running, .forgotten)
            if isAlone, !running.machine.request.passive {
                pending.released[running.machine.session.key] = running.machine.session
            }
        }
    }

    // MARK: - Afterwards

    /// Makes `to` what is wanted for a session that was `from`: at once here, at the turn's end in the kernel.
    func decide(change from: Session, to: Session) {
        if pending.changed[to.key] == nil { pending.changed[to.key] = from }
        keep(to)
    }

    private func commitChanges() {
        let changed = pending.changed
        let released = pending.released
        let settled = pending.settled
        let turns = pending.turns
        pending.changed = [:]
        pending.released = [:]
        pending.settled = []
        pending.turns = []
        if changed.isEmpty && settled.isEmpty && turns.isEmpty { return }
        let steps = changed.map { key, old in (from: old, to: sessions[key] ?? Session(key: key)) }
        var batch = JournalBatch()
        batch.sessions = steps.lazy.map(\.to).filter { released[$0.key] != $0 }
        batch.forgotten = settled
        batch.turns = turns
        do {
            try journal.write(batch)
        } catch {
            logger.error("\(error)")
        }
        do {
            try install(steps)
        } catch {
            // Past the point of no return there is no way back: what can be done is done.
            for step in steps {
                do {
                    try change(step.from, step.to)
                } catch {
                    logger.error("the change of \(step.to.key) was refused: \(error)")
                }
            }
        }
    }

    /// Brings table and queue threads from one state of several sessions to the next, all or nothing.
    private func install(_ steps: [(from: Session, to: Session)]) throws {
        let change = SessionChange(joining: steps.map { SessionChange(from: $0.from, to: $0.to) })
        if change.isEmpty { return }
        try gateway.install(
            change, undoneBy: SessionChange(joining: steps.map { SessionChange(from: $0.to, to: $0.from) }))
    }
}

/// A session was changed by something else between a migration's decision and its switch.
private struct OvertakenChange: Error, CustomStringConvertible {
    var description: String { "the session changed at the same moment; ask again" }
}

extension Journal {
    /// Writes the same step of several migrations, each with its session as it is to be.
    fileprivate func write(stage entries: [(JournaledMigration, Session)]) throws(JournalError) {
        var batch = JournalBatch()
        batch.migrations = entries.map(\.0)
        batch.sessions = entries.map(\.1)
        try write(batch)
    }
}
