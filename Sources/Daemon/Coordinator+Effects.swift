// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Ruleset
internal import Spoofer
internal import Wire

extension Coordinator {
    /// Carries out one effect. Returns the event that it led to, when that is known at once.
    func perform(_ effect: MigrationMachine.Effect, of running: RunningMigration) -> MigrationMachine.Event? {
        switch effect {
        case .locate: return locateWhenSettled(running)
        case .prepare:
            running.isUnderWay = true
            prepare(running)
            return nil
        case .check(let hosts): return check(hosts, for: running)
        case .place(let hosts, let connections): return place(hosts, connections, of: running)
        case .install(let from, let to):
            install(from: from, to: to, of: running)
            return nil
        case .forget(let connections):
            pending.forgets.append((running, connections))
            return nil
        case .reset(let connections, let client): return reset(connections, client: client, of: running)
        case .leaveClientAlone(let connection):
            endHandshake(connection.clientSide)
            return nil
        case .finish(let outcome):
            finish(running, outcome)
            return nil
        }
    }

    /// Waits for a connection that was given to the session a moment ago and is still on its way to conntrack.
    private func locateWhenSettled(_ running: RunningMigration) -> MigrationMachine.Event? {
        let located = locate(running)
        guard case .located = located, running.entries.isEmpty, running.closed.isEmpty,
            let session = sessions[running.machine.request.session], session.isFollowing, isOnItsWay(session.id)
        else { return located }
        loop.schedule(at: EventLoop.now + 2_000_000) {
            guard let located = self.locateWhenSettled(running) else { return }
            self.advance(running, located)
        }
        return nil
    }

    private func locate(_ running: RunningMigration) -> MigrationMachine.Event {
        let request = running.machine.request
        let key = request.session
        // What the queue threads have seen up to now belongs to the picture.
        if !setAside.isEmpty || gateway.rings.contains(where: { !$0.isEmpty }) { drainObservations() }
        learnUnheard(before: request)
        let binding = servingSession(of: key)?.binding
        running.entries = [:]
        running.closed = []
        do {
            for entry in try entries(of: key, binding: binding, running)
            where key.clientPort == nil || entry.original == tracked(key) || entry.original.source == key.clientEndpoint
            {
                guard let connection = located(entry, key: key, binding: binding) else {
                    if entry.phase == .closed, entry.original.destination == key.home { running.closed.append(entry) }
                    continue
                }
                running.entries[connection.clientSide] = entry
            }
        } catch {
            running.dump = nil
            logger.error("conntrack cannot be read: \(error)", metadata: running.metadata)
            return .installFailed(reason: "\(error)")
        }
        running.dump = nil
        var found = running.entries.compactMap { located($0.value, key: key, binding: binding) }
        if found.isEmpty, let reset = justReset(running, key: key, binding: binding) { found = [reset] }
        let connections = found + silentClients(of: sessions[key], besides: found, to: request.to ?? key.home)
        running.note(
            running.isUnderWay ? "located again" : "located",
            "\(connections.count) connection\(connections.count == 1 ? "" : "s")")
        return .located(connections)
    }

    /// Old connections whose client has not spoken since an earlier migration: conntrack has forgotten them, and this
    /// migration has to reset them or pass their segments to the new host. Their hosts' side has been dealt with, unless
    /// the client is opening its next connection at this moment: then that is on the present host. Nor must the side of a
    /// host be reset to which the session returns: what is on the four-tuple there may be new.
    private func silentClients(
        of session: Session?, besides found: [LocatedConnection], to host: Endpoint
    ) -> [LocatedConnection] {
        guard let session else { return [] }
        return session.transits.compactMap { tuple, standing in
            guard standing.transit == .awaitingSYN, tuple.destination == session.key.home,
                session.key.covers(tuple.source), !found.contains(where: { $0.clientSide == tuple })
            else { return nil }
            // One that has been reset, or has had its time, has nothing to come for: its transit stands for strays.
            guard let machine = migrations[standing.migration]?.machine,
                var connection = machine.connections.first(where: { $0.clientSide == tuple }),
                machine.clientResult(connection) == nil
            else { return nil }
            if connection.serverSide.destination == host {
                connection.serverSide = session.hostSide ?? connection.serverSide
                connection.serverSide.destination = session.host
            }
            return connection.serverSide.destination == host ? nil : connection
        }
    }

    /// Conntrack's entries that may be this session's: one look-up where the four-tuple is known, else a list.
    private func entries(
        of key: SessionKey, binding: Binding?, _ running: RunningMigration
    ) throws -> [ConnectionEntry] {
        guard key.clientPort == nil else {
            return try gateway.conntrack.entry(original: tracked(key)).map { [$0] } ?? []
        }
        let destination = binding.flatMap { $0.datapath == .queue ? $0.host : nil } ?? key.home
        if let look = running.look, let entries = try again(look, at: destination, of: key) { return entries }
        if running.dump == nil, let replies = knownReplies(of: key, binding) {
            return try replies.compactMap { try gateway.conntrack.entry(original: $0.reversed) }
        }
        let position = running.dump == nil ? announcements(before: running.machine.request) : running.dumpPosition
        let entries =
            try running.dump
            ?? gateway.conntrack.entries(client: key.client) { $0.original.destination == destination }
        running.look = position.map { ConnectionLook(entries, at: destination, after: $0) }
        return entries
    }

    /// What conntrack has as the original four-tuple of the one connection of this key: as its own session has it, or the
    /// service's.
    private func tracked(_ key: SessionKey) -> FourTuple {
        guard let session = servingSession(of: key) else { return key.original }
        if session.key == key { return session.tracked }
        guard let binding = session.binding, binding.datapath == .queue else { return key.original }
        return FourTuple(source: key.clientEndpoint, destination: binding.host)
    }

    /// The connection that a conntrack entry stands for, if it is one of this session's and not over.
    private func located(_ entry: ConnectionEntry, key: SessionKey, binding: Binding?) -> LocatedConnection? {
        let phase = entry.phase
        guard phase != .closed, !isKeptOut(entry.original.source, of: key) else { return nil }
        let serverSide = entry.reply.reversed
        guard let binding, binding.datapath == .queue else {
            guard entry.original.destination == key.home,
                binding == nil || serverSide.destination == binding?.host
            else { return nil }
            return LocatedConnection(clientSide: entry.original, serverSide: serverSide, phase: phase)
        }
        // User space translates before conntrack looks: it knows the servers' view only.
        let reply = FourTuple(source: binding.host, destination: entry.original.source)
        guard entry.original.destination == binding.host, servingSession(of: key)?.replies.contains(reply) == true
        else {
            return nil
        }
        let client = sessions[key].map { clientEndpoint(of: entry, $0) } ?? entry.original.source
        let clientSide = FourTuple(source: client, destination: key.home)
        return LocatedConnection(clientSide: clientSide, serverSide: serverSide, phase: phase)
    }

    /// A connection of a bound session that its host has just reset. The client may open the next one at this moment, and
    /// that must not reach the host which is being left: so it is stopped and asked like one that lives.
    private func justReset(_ running: RunningMigration, key: SessionKey, binding: Binding?) -> LocatedConnection? {
        guard key.clientPort != nil, let binding, binding.datapath == .kernel,
            let entry = running.closed.first(where: { $0.state == .close && $0.reply.source == binding.host })
        else { return nil }
        let connection = LocatedConnection(
            clientSide: entry.original, serverSide: entry.reply.reversed, phase: .closed)
        running.entries[connection.clientSide] = entry
        return connection
    }

    private func check(_ hosts: [Endpoint], for running: RunningMigration) -> MigrationMachine.Event? {
        running.isUnderWay = true
        running.note("checking", running.machine.request.destinationText)
        let timeout = UInt64(configuration.checkTimeout) * 1_000_000
        var left = hosts.count
        var listening: Set<Endpoint> = []
        var refusal: String?
        running.hostChecks = hosts.map { host in
            HostCheck(host, timeout: timeout, loop: loop) { failure in
                left -= 1
                if let failure { refusal = refusal ?? failure } else { listening.insert(host) }
                guard left == 0 else { return }
                let result: MigrationMachine.HostCheck =
                    listening.isEmpty
                    ? .failed(reason: refusal ?? "no answer") : .listening(hosts.filter(listening.contains))
                // Always a turn of the loop later: the machine has to be done with this event first.
                self.loop.next {
                    self.advance(running, .checked(result))
                    running.hostChecks = []
                }
            }
        }
        return nil
    }

    /// Both are carried out when the loop's turn ends, with what other migrations want done: see `commit`.
    private func install(from: Session, to: Session, of running: RunningMigration) {
        guard running.before == nil else {
            decide(change: from, to: to)
            settle(to, since: from)
            return
        }
        decide(switch: running, from: from, to: to)
    }

    /// Brings table and queue threads from one state of a session to the next. A table that somebody has deleted is made
    /// again first, with everything that belongs into it.
    func change(_ from: Session, _ to: Session) throws {
        let change = SessionChange(from: from, to: to)
        do {
            try gateway.install(change, undoneBy: SessionChange(from: to, to: from))
        } catch {
            guard (try? gateway.table.exists) == false else { throw error }
            try restoreTable()
            try gateway.install(change, undoneBy: SessionChange(from: to, to: from))
        }
    }

    /// Ends what older sessions of the same client, of another scope or home, hold against what `session` is to hold: one
    /// four-tuple can have one treatment only.
    func clearWay(for session: Session) {
        var others = sessions.sessions(around: session.key)
        for tuple in session.transits.keys {
            guard let holder = sessions.session(holding: tuple), holder.key != session.key,
                holder.key.sharesAddress(with: session.key), !others.contains(where: { $0.key == holder.key })
            else { continue }
            others.append(holder)
        }
        for other in others {
            var cleared = other
            // Where user space carries all clients of a home, it lets none of their SYNs pass untranslated.
            let isCarried =
                session.key.scope == .service && session.key.home == other.key.home
                && session.binding?.datapath == .queue && other.binding == nil
            for (tuple, standing) in other.transits {
                let isTaken = session.transits[tuple] != nil
                // Another connection of the client may be on its way from this very host: it is left alone.
                let isAgainstHost =
                    tuple.source == session.host && standing.host == session.host
                    && (session.key.clientPort == nil || session.key.clientPort == tuple.destination.port)
                let isUntranslated = isCarried && standing.transit == .awaitingSYN
                if isTaken || isAgainstHost || isUntranslated { cleared.transits[tuple] = nil }
            }
            guard cleared != other else { continue }
            decide(change: other, to: cleared)
            settle(cleared, since: other)
        }
        for other in sessions.sessions(atHostOf: session.key) where !other.yields {
            var yielding = other
            yielding.yields = true
            decide(change: other, to: yielding)
        }
    }

    /// What follows from a change that has been made: nothing more is sent about a transit that has ended or that the
    /// kernel answers from now on, and new ones end by themselves.
    func settle(_ session: Session, since old: Session) {
        keep(session)
        for (tuple, standing) in old.transits {
            let next = session.transits[tuple]
            guard next == nil || next?.transit == .guarded || next?.migration != standing.migration else { continue }
            endHandshake(tuple)
            passives[tuple] = nil
        }
        scheduleExpiry(of: session, since: old)
        forgetSettled(session.key)
        if session.isDirect { watchDirect() }
        if session.binding == nil || old.binding == nil { settleWatches(around: session.key) }
    }

    /// Takes migrations out of the journal that have an outcome and hold nothing that needs user space: until then a new
    /// daemon has to take them up again.
    func forgetSettled(_ key: SessionKey) {
        for id in standing[key] ?? [] {
            guard migrations[id]?.machine.isFinished ?? true,
                !(sessions[key]?.transits.values.contains { $0.migration == id && $0.transit != .guarded } ?? false)
            else { continue }
            standing[key]?.remove(id)
            pending.settled.append(id)
        }
        if standing[key]?.isEmpty ?? false { standing[key] = nil }
    }

    private func finish(_ running: RunningMigration, _ outcome: MigrationOutcome) {
        running.finishedAt = EventLoop.wallClock
        awaitingReconnect.remove(running.machine.id)
        if awaitingReconnect.isEmpty { closeEventsWhenIdle() }
        let key = running.machine.request.session
        if preparing[key] == running.machine.id { preparing[key] = nil }
        forgetSettled(key)
        switch outcome {
        case .proven: running.note("finished", "the from-host's reset is proven")
        case .unproven: running.note("finished", "the from-host did not prove its reset; the guard stands")
        case .superseded: running.note("finished", "a newer migration has taken over")
        case .failed(let failure): running.note("finished", "\(failure)")
        }
        logger.log(level: running.logLevel, "migration finished: \(outcome)", metadata: running.metadata)
        endPreparation(of: running)
        forgetLifetimes(before: running)
        lifetimeGoesOn(after: running)
        switch outcome {
        case .proven, .unproven: runHooks(at: .completed, of: running)
        case .failed where running.isUnderWay: runHooks(at: .failed, of: running)
        case .failed, .superseded: break
        }
        running.resumeWaiters(loop)
        ended(running)
    }

    // MARK: - Sessions

    /// Makes `session` what the gateway holds for its key.
    func keep(_ session: Session) {
        sessions[session.key] = session.isIdle ? nil : session
        if session.isIdle { given[session.id] = nil }
        guard session.isIdle, let id = latest[session.key] else { return }
        if migrations[id]?.machine.isFinished ?? true { latest[session.key] = nil }
    }

    /// Transits end by themselves, in the kernel and here.
    func scheduleExpiry(of session: Session, since old: Session) {
        for (tuple, standing) in old.transits where session.transits[tuple] != standing {
            guard expiries[tuple]?.id == session.id, let expiry = expiries.removeValue(forKey: tuple) else {
                continue
            }
            loop.cancel(expiry.timer)
        }
        for (tuple, standing) in session.transits where old.transits[tuple] != standing {
            let deadline = EventLoop.now + UInt64(standing.lifetime) * 1_000_000_000
            let timer = loop.schedule(at: deadline) { self.expire(tuple, standing, of: session.id) }
            if let other = expiries.updateValue((session.id, timer), forKey: tuple) { loop.cancel(other.timer) }
        }
    }

    private func expire(_ tuple: FourTuple, _ standing: StandingTransit, of id: UInt64) {
        guard let pending = sessions.key(of: id) else { return }
        commit(before: pending)
        guard let key = sessions.key(of: id), let session = sessions[key], session.transits[tuple] == standing else {
            return
        }
        var without = session
        without.endTransit(of: tuple)
        // A handshake that is still at work ends with it, without a result.
        let unfinished = handshakes[tuple].flatMap { $0.handshake.outcome == nil ? $0 : nil }
        endHandshake(tuple)
        passives[tuple] = nil
        expiries[tuple] = nil
        decide(change: session, to: without)
        settleWatches(around: key)
        forgetSettled(key)
        guard let unfinished, let running = migrations[unfinished.migration] else { return }
        advance(
            running,
            unfinished.isTowardsClient
                ? .clientReset(unfinished.connection, .unproven) : .serverReset(unfinished.connection, .unproven))
    }

    func journaled(_ running: RunningMigration, _ stage: JournaledMigration.Stage) -> JournaledMigration {
        let machine = running.machine
        var entry = JournaledMigration(
            id: machine.id, stage: stage, before: SessionDocument(running.before ?? machine.session),
            to: machine.request.to.map { "\($0)" }, datapath: machine.request.datapath.rawValue,
            passive: machine.request.passive, fromHost: "\(machine.fromHost)",
            connections: machine.connections.map { ConnectionDocument($0) })
        entry.member = journaledMember(running)
        return entry
    }
}

extension ConnectionEntry {
    /// The state as far as a migration has to tell it apart.
    var phase: ConnectionPhase {
        switch state {
        case .synSent, .synSent2: .opening
        case .synReceived: .halfOpen
        // A RST that was not exact leaves the state and ten seconds (`nf_conntrack_tcp_packet`), which the next segment of a
        // connection that goes on would have made days again: both ends have dropped this one.
        case .established where timeout <= 10: .closed
        case .established, nil: .established
        case .finWait, .closeWait, .lastAck: isClosedByInitiator ? .leaving : .closing
        case .timeWait, .close, .some(.none): .closed
        }
    }
}
