// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Logging
internal import Migration
internal import Wire

extension Coordinator {
    /// Seconds until the way home is tried again.
    private static let patience: Double = 5

    /// The switch is made: what the session was to do by itself before is void, and the new migration's time begins.
    func beginLifetime(of running: RunningMigration) {
        let session = running.machine.request.session
        for other in lifetimes.values where other.session == session {
            stopWaiting(for: other.migration)
            running.endedLifetimes.append(other.migration)
        }
        guard let requested = running.machine.request.lifetime else { return }
        let standing = StandingLifetime(
            requested, migration: running.machine.id, session: session,
            switchedAt: running.switchedAt ?? EventLoop.wallClock)
        keep(standing)
        if let next = standing.next { running.note("lifetime", Self.text(next.end, in: next.at - EventLoop.wallClock)) }
    }

    /// Forgets the lifetimes of a session's older migrations for good, once a newer one cannot be taken back any more.
    func forgetLifetimes(before running: RunningMigration) {
        guard running.machine.isSwitched else { return }
        for id in running.endedLifetimes { forget(id) }
        running.endedLifetimes = []
    }

    /// `POST /v1/migrations/{id}/confirm`: the migration stays, for its lifetime if it has one.
    func confirm(_ id: UInt64, caller: Caller) throws(Problem) -> MigrationConfirmation {
        guard var standing = lifetimes[id], standing.confirmBy != nil else {
            guard migrations[id] != nil || lifetimes[id] != nil else {
                throw Problem(
                    kind: .unknownMigration,
                    detail: "There is no migration \(id) that waits to be confirmed: its time may be over.")
            }
            throw Problem(
                kind: .notAwaitingConfirmation,
                detail:
                    "Migration \(id) does not wait to be confirmed: it was confirmed, has ended, or never had to be.")
        }
        if let refusal = policy.refusal(of: standing.session, to: nil, by: caller.credentials) {
            throw MigrationFailure.refused(refusal).problem
        }
        standing.confirmBy = nil
        keep(standing)
        note("confirmed", nil, migration: id)
        return MigrationConfirmation(
            id: id, client: standing.session.clientText, home: "\(standing.session.home)",
            confirmedAt: EventLoop.wallClock,
            endsAt: standing.endsAt)
    }

    /// Takes up what an earlier process was waiting for. A migration that was taken back, or that another one of its
    /// session has followed, ends no more.
    func resumeLifetimes(_ standing: [StandingLifetime], migrations: [JournaledMigration]) {
        var newest: [SessionKey: UInt64] = [:]
        for entry in migrations where entry.stage == .resetting {
            guard let key = entry.before.session?.key else { continue }
            newest[key] = max(newest[key] ?? 0, entry.id)
        }
        let takenBack = Set(migrations.filter { $0.stage == .switching }.map(\.id))
        for each in standing.sorted(by: { $0.migration < $1.migration }) {
            guard sessions[each.session]?.binding != nil, !takenBack.contains(each.migration),
                newest[each.session] ?? 0 <= each.migration
            else {
                forget(each.migration)
                continue
            }
            for other in lifetimes.values where other.session == each.session { forget(other.migration) }
            keep(each)
        }
    }

    /// Sessions have followed their clients to other ports, and what they are to do by themselves goes with them.
    func followLifetimes(of moved: [SessionKey: Session]) {
        for standing in lifetimes.values {
            guard let session = moved[standing.session] else { continue }
            var standing = standing
            standing.session = session.key
            keep(standing)
        }
    }

    /// Writes down what a migration waits for, and waits for it.
    private func keep(_ standing: StandingLifetime, waiting: Bool = true) {
        stopWaiting(for: standing.migration)
        do {
            if standing.isOver {
                try journal.forgetLifetime(standing.migration)
            } else {
                try journal.write(standing)
            }
        } catch {
            logger.error("\(error)")
        }
        guard let next = standing.next else { return }
        lifetimes[standing.migration] = standing
        guard waiting else { return }
        let wait = max(0, next.at - EventLoop.wallClock)
        lifetimeTimers[standing.migration] = loop.schedule(at: EventLoop.now + UInt64(wait * 1e9)) {
            self.lifetimeEnded(standing.migration, next.end)
        }
    }

    private func stopWaiting(for migration: UInt64) {
        if let timer = lifetimeTimers.removeValue(forKey: migration) { loop.cancel(timer) }
        lifetimes[migration] = nil
    }

    private func forget(_ migration: UInt64) {
        stopWaiting(for: migration)
        do {
            try journal.forgetLifetime(migration)
        } catch {
            logger.error("\(error)")
        }
    }

    /// A migration ends by itself: with another one, home or on to the next host.
    private func lifetimeEnded(_ id: UInt64, _ end: LifetimeEnd) {
        guard var standing = lifetimes[id] else { return }
        guard let binding = sessions[standing.session]?.binding else { return forget(id) }
        let request = MigrationRequest(
            session: standing.session, to: end.host, datapath: binding.datapath,
            passive: migrations[id]?.machine.request.passive ?? false, checksHost: configuration.checkHost)
        // Only one that is switched ends it: see `lifetimeGoesOn`. A daemon that starts anew tries the way home at once.
        standing.endsAt = EventLoop.wallClock
        standing.then = nil
        standing.confirmBy = nil
        keep(standing, waiting: false)
        let next = begin(request, caller: .daemon)
        let why = end == .unconfirmed ? "nobody has confirmed" : "the lifetime is over of"
        note("lifetime ended", "\(Self.text(end, in: nil)) as migration \(next)", migration: id)
        logger.notice(
            "migration \(id) ends by itself: \(Self.text(end, in: nil))", metadata: migrations[next]?.metadata)
        guard let running = migrations[next] else { return }
        running.note("cause", "\(why) migration \(id)")
        running.ends = id
        if running.machine.isFinished { lifetimeGoesOn(after: running) }
    }

    /// A migration that was to end another one has failed: the session is to go home then, and that is tried until it is
    /// done or somebody else moves the session.
    func lifetimeGoesOn(after running: RunningMigration) {
        guard let id = running.ends, case .failed? = running.machine.outcome, var standing = lifetimes[id] else {
            return
        }
        let isWayHome = running.machine.request.to == nil
        standing.endsAt = EventLoop.wallClock + (isWayHome ? Self.patience : 0)
        logger.error(
            "migration \(id) has not ended, because \(running.machine.id) failed: the way home is tried",
            metadata: running.metadata)
        keep(standing)
    }

    /// Writes a step of a migration that an earlier process may have begun.
    private func note(_ step: String, _ detail: String?, migration: UInt64) {
        if let running = migrations[migration] { return running.note(step, detail) }
        let service = lifetimes[migration].flatMap { policy.service(of: $0.session)?.name }
        eventLog.publish(.migrationStep, step, detail, migration: migration, service: service)
    }

    private static func text(_ end: LifetimeEnd, in seconds: Double?) -> String {
        let time = seconds.map { " in \(max(0, $0.rounded()).plainText) s" } ?? ""
        return switch end {
        case .over: "home\(time)"
        case .onward(let host): "on to \(host)\(time)"
        case .unconfirmed: seconds == nil ? "home, because nobody confirmed it" : "home\(time) unless confirmed"
        }
    }
}

extension Coordinator {
    nonisolated var lifetimeRoutes: [ControlRoute] {
        [
            ControlRoute("POST", "/v1/migrations/:id/confirm") { request in
                let id = try request.identifier(
                    "id", orThrow: Problem(kind: .unknownMigration, detail: "A migration's id is a whole number."))
                return .document(try await self.confirm(id, caller: request.caller))
            }
        ]
    }
}
