// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Logging
internal import Migration
internal import Wire

// Drains outlive the daemon: what they were to do and how far they are is in the journal.
extension Coordinator {
    // MARK: - Writing down

    /// Writes a drain down before it does anything.
    func journal(_ drain: RunningDrain) throws(Problem) {
        let members = drain.members.all.map { member in
            var session = Session(key: member.key, id: member.session)
            session.binding = member.before
            return SessionDocument(session)
        }
        let caller = drain.caller
        let beginning = JournaledDrain.Beginning(
            order: drain.order, user: caller.user, group: caller.group, process: caller.process,
            requestedAt: drain.requestedAt, members: members)
        do {
            try journal.write(beginning, of: drain.id)
        } catch {
            throw Problem(kind: .internalError, detail: "\(error)")
        }
    }

    /// Writes down how far a drain is, when that has changed.
    func journalProgress(of drain: RunningDrain) {
        let progress = drain.machine.progress
        guard progress != drain.journaled, !drain.machine.isFinished else { return }
        do {
            try journal.write(progress, of: drain.id)
            drain.journaled = progress
        } catch {
            logger.error("\(error)", metadata: ["drain": "\(drain.id)"])
        }
    }

    /// Writes down what has become of a member, with what else this turn of the loop writes: before its migration is
    /// forgotten.
    func journalTurn(_ member: Int, _ result: Drain.Result, _ running: RunningMigration, of drain: RunningDrain) {
        guard let host = drain.machine.host(of: member) else { return }
        let turn = JournaledTurn(
            drain: drain.id, place: member, host: host, result: result, session: running.machine.session.id,
            isAwaited: !running.machine.connections.isEmpty && !running.machine.request.passive)
        journal(turn, of: drain)
    }

    private func journal(_ turn: JournaledTurn, of drain: RunningDrain) {
        guard drain.machine.host(of: turn.place) != nil else { return }
        drain.turns[turn.place] = turn
        pending.turns.append(turn)
    }

    /// The same of one that was sent back.
    func journalReturn(_ member: Int, isBack: Bool, of drain: RunningDrain) {
        guard drain.turns[member] != nil else { return }
        drain.turns[member]?.isBack = isBack
        if let turn = drain.turns[member] { pending.turns.append(turn) }
    }

    /// What the journal says of a member's migration.
    func journaledMember(_ running: RunningMigration) -> JournaledMember? {
        guard let drain = running.drain.flatMap({ drains[$0] }),
            let (member, isReturning) = drain.migrations[running.machine.id]
        else { return nil }
        return JournaledMember(
            drain: drain.id, place: member, host: drain.machine.host(of: member) ?? 0, isReturning: isReturning)
    }

    // MARK: - Taking up again

    /// Takes up the drains of an earlier process, before their members' migrations are. `migrations`: what is in the journal.
    func restoreDrains(_ migrations: [JournaledMigration]) throws {
        for report in try journal.endedDrains() { endedDrains[report.id] = report }
        for entry in try journal.drains() {
            guard let drain = restored(entry, migrations) else {
                logger.error("drain \(entry.id) cannot be taken up again: this daemon does not understand its order")
                try journal.forgetDrain(entry.id)
                continue
            }
            drains[drain.id] = drain
            lastMigration = max(lastMigration, drain.id)
        }
    }

    private func restored(_ entry: JournaledDrain, _ migrations: [JournaledMigration]) -> RunningDrain? {
        let beginning = entry.beginning
        guard
            let selection = try? DrainSelection(
                beginning.order, defaultDatapath: configuration.datapath, checksHosts: configuration.checkHost)
        else { return nil }
        let turns = Dictionary(entry.turns.map { ($0.place, $0) }) { $1 }
        let ofDrain = migrations.filter { $0.member?.drain == entry.id && $0.stage == .resetting }
        let underWay = Dictionary(ofDrain.compactMap { each in each.member.map { ($0.place, each) } }) { $1 }
        var members: [DrainMembers.Member] = []
        for (place, document) in beginning.members.enumerated() {
            guard let session = document.session else { return nil }
            // Its client may have come back from another port since.
            let number = turns[place]?.session ?? underWay[place]?.before.id ?? session.id
            members.append(
                DrainMembers.Member(
                    key: sessions.key(of: number) ?? session.key, session: session.id, before: session.binding))
        }
        let caller = Caller(user: beginning.user, group: beginning.group, process: beginning.process)
        let drain = RunningDrain(
            id: entry.id, order: beginning.order, caller: caller, selection: selection, members: members,
            requestedAt: beginning.requestedAt)
        var record = Drain.Record(entry.progress)
        for turn in entry.turns {
            record.turns[turn.place] = .init(host: turn.host, result: turn.result, isBack: turn.isBack)
        }
        for each in ofDrain {
            guard let member = each.member else { continue }
            if member.isReturning {
                record.returning.insert(member.place)
            } else {
                record.underWay[member.place] = member.host
            }
            drain.migrations[each.id] = (member.place, member.isReturning)
        }
        drain.machine = Drain(drain.machine.plan, resuming: record)
        drain.journaled = entry.progress
        drain.turns = turns
        drain.earlier = Set(turns.keys)
        return drain
    }

    /// Lets them go on. `over`: migrations in the journal that hold nothing any more.
    func resumeDrains(over: [JournaledMigration]) throws {
        for drain in drains.values.sorted(by: { $0.id < $1.id }) {
            logger.notice("drain \(drain.order.what) is taken up again", metadata: ["drain": "\(drain.id)"])
            advance(drain, .begin)
        }
        for entry in over where entry.stage == .resetting {
            guard let member = entry.member, let drain = drains[member.drain], !drain.machine.isFinished else {
                continue
            }
            let before = drain.members[member.place].before
            let binding = sessions[drain.members[member.place].key]?.binding
            if member.isReturning {
                tellLater(drain, .returned(member.place, isBack: binding?.host == before?.host))
            } else {
                // It was switched for good; what the from-host has answered nobody knows.
                let result = Drain.Result.moved(isProven: false)
                journal(
                    JournaledTurn(
                        drain: drain.id, place: member.place, host: member.host, result: result,
                        session: entry.before.id, isAwaited: !entry.connections.isEmpty && !entry.passive), of: drain)
                tellLater(drain, .ended(member.place, result))
            }
        }
        if isWatchingCanary { try openEvents() }
    }
}

extension Drain {
    /// How far it is, as the journal has it.
    var progress: DrainProgress {
        var progress = DrainProgress()
        progress.isPaused = isPaused
        progress.isCancelled = isCancelled
        progress.isCanaryOver = isCanaryOver
        progress.stopReason = stopReason
        return progress
    }
}

extension Drain.Record {
    init(_ progress: DrainProgress) {
        self.init()
        isPaused = progress.isPaused
        isCancelled = progress.isCancelled
        isCanaryOver = progress.isCanaryOver
        stopReason = progress.stopReason
    }
}
