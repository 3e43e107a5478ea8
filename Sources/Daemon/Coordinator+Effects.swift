// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Logging
internal import Migration
internal import Ruleset
internal import Spoofer
internal import Wire

extension Coordinator {
    /// Carries out one effect. Returns the event that it led to, when that is known at once.
    func perform(_ effect: MigrationMachine.Effect, of running: RunningMigration) -> MigrationMachine.Event? {
        switch effect {
        case .locate: return locate(running)
        case .check(let host): return check(host, for: running)
        case .install(let from, let to): return install(from: from, to: to, of: running)
        case .forget(let connections): return forget(connections, of: running)
        case .reset(let connections, let client): return reset(connections, client: client, of: running)
        case .leaveClientAlone(let connection):
            endHandshake(connection.clientSide)
            return nil
        case .finish(let outcome):
            finish(running, outcome)
            return nil
        }
    }

    private func locate(_ running: RunningMigration) -> MigrationMachine.Event {
        let request = running.machine.request
        let key = request.session
        let binding = sessions[key]?.binding
        do {
            for entry in try entries(of: key, binding: binding, dump: running.dump)
            where key.clientPort == nil || entry.original.source.port == key.clientPort {
                guard let connection = located(entry, key: key, binding: binding) else { continue }
                running.entries[connection.clientSide] = entry
            }
        } catch {
            logger.error("conntrack cannot be read: \(error)", metadata: running.metadata)
        }
        let connections = running.entries.compactMap { located($0.value, key: key, binding: binding) }
        running.note("located", "\(connections.count) connection\(connections.count == 1 ? "" : "s")")
        return .located(connections)
    }

    /// Conntrack's entries that may be this session's: one look-up where the four-tuple is known, else a dump.
    private func entries(
        of key: SessionKey, binding: Binding?, dump: [ConnectionEntry]?
    ) throws -> [ConnectionEntry] {
        guard key.clientPort != nil else { return try dump ?? gateway.conntrack.entries(client: key.client) }
        var original = key.original
        if let binding, binding.datapath == .queue { original.destination = binding.host }
        return try gateway.conntrack.entry(original: original).map { [$0] } ?? []
    }

    /// The connection that a conntrack entry stands for, if it is one of this session's and not over.
    private func located(_ entry: ConnectionEntry, key: SessionKey, binding: Binding?) -> LocatedConnection? {
        let phase = entry.phase
        guard phase != .closed else { return nil }
        let serverSide = entry.reply.reversed
        guard let binding, binding.datapath == .queue else {
            guard entry.original.destination == key.home,
                binding == nil || serverSide.destination == binding?.host
            else { return nil }
            return LocatedConnection(clientSide: entry.original, serverSide: serverSide, phase: phase)
        }
        // User space translates before conntrack looks: it knows the servers' view only.
        let reply = FourTuple(source: binding.host, destination: entry.original.source)
        guard entry.original.destination == binding.host, sessions[key]?.replies.contains(reply) == true else {
            return nil
        }
        let clientSide = FourTuple(source: entry.original.source, destination: key.home)
        return LocatedConnection(clientSide: clientSide, serverSide: serverSide, phase: phase)
    }

    private func check(_ host: Endpoint, for running: RunningMigration) -> MigrationMachine.Event? {
        running.note("checking", "\(host)")
        running.hostCheck = HostCheck(host, timeout: UInt64(configuration.checkTimeout) * 1_000_000, loop: loop) {
            // Always a turn of the loop later: the machine has to be done with this event first.
            result in
            self.loop.schedule(at: EventLoop.now) {
                running.hostCheck = nil
                self.advance(running, .checked(result))
            }
        }
        return nil
    }

    private func install(from: Session, to: Session, of running: RunningMigration) -> MigrationMachine.Event? {
        let isSwitch = running.before == nil
        do {
            if isSwitch {
                running.before = from
                try openEvents()
                awaitingReconnect.insert(running.machine.id)
                try journal.write(journaled(running, .switching), to)
            } else {
                try journal.write(to)
            }
            try gateway.install(
                SessionChange(from: from, to: to), undoneBy: SessionChange(from: to, to: from))
        } catch {
            logger.error("the change was refused: \(error)", metadata: running.metadata)
            guard isSwitch else { return nil }
            awaitingReconnect.remove(running.machine.id)
            try? journal.write(from)
            try? journal.forgetMigration(running.machine.id)
            running.machine.adopt(from)
            return .installFailed(reason: "\(error)")
        }
        keep(to)
        // Nothing is sent any more about a transit that has ended, or that the kernel answers from now on.
        for (tuple, standing) in from.transits {
            let next = to.transits[tuple]
            guard next == nil || next?.transit == .guarded || next?.migration != standing.migration else { continue }
            endHandshake(tuple)
            passives[tuple] = nil
        }
        scheduleExpiry(of: to, since: from)
        guard isSwitch else { return nil }
        running.switchedAt = EventLoop.wallClock
        running.note("switched", "\(from.host) → \(to.host)")
        return .installed
    }

    private func forget(_ connections: [LocatedConnection], of running: RunningMigration) -> MigrationMachine.Event {
        do {
            try journal.write(journaled(running, .resetting), running.machine.session)
        } catch {
            logger.error("\(error)", metadata: running.metadata)
        }
        for connection in connections {
            guard let entry = running.entries[connection.clientSide] else { continue }
            do {
                _ = try gateway.conntrack.delete(entry)
            } catch {
                logger.error("\(error)", metadata: running.metadata)
            }
        }
        running.note("forgotten", "conntrack's \(connections.count == 1 ? "entry" : "\(connections.count) entries")")
        return .forgotten
    }

    private func finish(_ running: RunningMigration, _ outcome: MigrationOutcome) {
        running.finishedAt = EventLoop.wallClock
        awaitingReconnect.remove(running.machine.id)
        if awaitingReconnect.isEmpty { closeEventsWhenIdle() }
        do {
            try journal.forgetMigration(running.machine.id)
        } catch {
            logger.error("\(error)", metadata: running.metadata)
        }
        switch outcome {
        case .proven: running.note("finished", "the from-host's reset is proven")
        case .unproven: running.note("finished", "the from-host did not prove its reset; the guard stands")
        case .failed(let failure): running.note("finished", "\(failure)")
        }
        logger.notice("migration finished: \(outcome)", metadata: running.metadata)
        running.resumeWaiters()
    }

    // MARK: - Sessions

    /// Makes `session` what the gateway holds for its key.
    func keep(_ session: Session) {
        sessions[session.key] = session.isIdle ? nil : session
        if session.isIdle { latest[session.key] = latest[session.key].flatMap { migrations[$0] == nil ? nil : $0 } }
    }

    /// Transits end by themselves, in the kernel and here.
    func scheduleExpiry(of session: Session, since old: Session) {
        for (tuple, standing) in session.transits where old.transits[tuple] != standing {
            let deadline = EventLoop.now + UInt64(standing.lifetime) * 1_000_000_000
            loop.schedule(at: deadline) { self.expire(tuple, standing, key: session.key) }
        }
    }

    private func expire(_ tuple: FourTuple, _ standing: StandingTransit, key: SessionKey) {
        guard let session = sessions[key], session.transits[tuple] == standing else { return }
        var without = session
        without.transits[tuple] = nil
        // A handshake that is still at work ends with it, without a result.
        let unfinished = handshakes[tuple].flatMap { $0.handshake.outcome == nil ? $0 : nil }
        endHandshake(tuple)
        passives[tuple] = nil
        do {
            try gateway.install(
                SessionChange(from: session, to: without), undoneBy: SessionChange(from: without, to: session))
            try journal.write(without)
        } catch {
            logger.error("an expired transit cannot be removed: \(error)")
        }
        keep(without)
        guard let unfinished, let running = migrations[unfinished.migration] else { return }
        advance(
            running,
            unfinished.isTowardsClient
                ? .clientReset(unfinished.connection, .unproven) : .serverReset(unfinished.connection, .unproven))
    }

    private func journaled(_ running: RunningMigration, _ stage: JournaledMigration.Stage) -> JournaledMigration {
        let machine = running.machine
        return JournaledMigration(
            id: machine.id, stage: stage, before: SessionDocument(running.before ?? machine.session),
            to: machine.request.to.map { "\($0)" }, datapath: machine.request.datapath.rawValue,
            passive: machine.request.passive, fromHost: "\(machine.fromHost)",
            connections: machine.connections.map { ConnectionDocument($0) })
    }
}

extension ConnectionEntry {
    /// The state as far as a migration has to tell it apart.
    var phase: ConnectionPhase {
        switch state {
        case .synSent, .synSent2: .opening
        case .synReceived: .halfOpen
        case .established, nil: .established
        case .finWait, .closeWait, .lastAck: .closing
        case .timeWait, .close, .some(.none): .closed
        }
    }
}
