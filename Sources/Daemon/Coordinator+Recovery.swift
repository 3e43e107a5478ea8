// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Conntrack
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Rewriter
internal import Ruleset
internal import Wire

extension Coordinator {
    /// Brings journal and kernel together and takes up what an earlier process left unfinished. The table is adopted as
    /// it stands; what it lacks is added, what nobody knows is removed, in one transaction.
    func start() throws {
        loop.turnEnded = { self.commit() }
        let contents = try journal.load()
        try beginEvents()
        lastMigration = max(contents.lastMigration, contents.sessions.map(\.id).max() ?? 0)
        sessions = SessionTable(contents.sessions)
        var takenBack: [Session] = []
        for entry in contents.migrations where entry.stage == .switching {
            guard let before = entry.before.session else { continue }
            sessions[before.key] = before.isIdle ? nil : before
            takenBack.append(before)
            logger.notice("migration \(entry.id) was not switched for good: taken back")
        }
        // A new kernel has no old connections, and so nothing to stop or to learn from.
        if try !gateway.table.exists {
            for session in sessions.values.filter({ !$0.transits.isEmpty }) {
                sessions[session.key]?.transits = [:]
            }
        }
        // The queues come first: another daemon has them bound, and then this one must not touch the table.
        var known: [FlowKey: FlowRule] = [:]
        known.reserveCapacity(2 * sessions.count)
        for session in sessions.values { known.merge(session.flows()) { first, _ in first } }
        try gateway.startQueues(configuration, flows: known.map { ($0.key, $0.value) })
        let options = gateway.options
        logger.notice(
            "\(configuration.queues) queues from number \(configuration.firstQueue) on",
            metadata: [
                "packets": "\(options.maximumLength)", "receive-buffer": "\(options.receiveBuffer)",
                "send-buffer": "\(options.sendBuffer)",
            ])
        for queue in gateway.queues { if let shortfall = queue.shortfall { logger.warning("\(shortfall)") } }
        // A table that has to be made, or made anew by another version, knows its elements from the first packet on.
        let established = try gateway.table.establish(
            carrying: sessions.values.reduce(into: [TableElement: UInt32?]()) { elements, session in
                elements.merge(session.elements()) { first, _ in first }
            }.map { TableChange.Addition(element: $0.key, lifetime: $0.value) })
        logger.notice(
            "table \(established)", metadata: ["queue": "\(gateway.table.queueStatement.map { "\($0)" } ?? "unknown")"])
        let changed = try reconcile(isNew: established != .adopted, writing: takenBack)
        if changed {
            let wanted = Set(sessions.values.flatMap { $0.flows().keys })
            try gateway.post(known.keys.filter { !wanted.contains($0) }.map { .remove($0) })
        }
        for ring in gateway.rings {
            loop.watch(ring.eventFileDescriptor) { self.drainObservations() }
        }
        try restoreDrains(contents.migrations)
        // One that is taken up again stays in the journal until it holds nothing more.
        let over = contents.migrations.filter { $0.stage == .switching || !resume($0) }
        try resumeDrains(over: over)
        pending.settled += over.map(\.id)
        resumeLifetimes(try journal.lifetimes(), migrations: contents.migrations)
        // Whoever one of them gave way to may have been taken back, or have ended while no daemon was there.
        for session in sessions.values where session.yields { settleWatch(of: session) }
        watchDirect()
        try startWebhooks()
        // What it took to read all that is several times what is left of it.
        nfqmig_trim_heap()
        if policy.services.isEmpty { warnOfEmptyPolicy() }
    }

    /// Makes sessions and table agree: what the table has learnt or let go since the journal was written, and what it holds
    /// too much or too little. `isNew`: it has just been made from these sessions. Writes the sessions that this changes,
    /// and those given, and says whether there were any.
    private func reconcile(isNew: Bool, writing given: [Session]) throws -> Bool {
        var batch = JournalBatch()
        batch.sessions = given
        var wanted: [TableElement: UInt32?] = [:]
        wanted.reserveCapacity(2 * sessions.count)
        if !isNew {
            for session in sessions.values { wanted.merge(session.elements()) { first, _ in first } }
        }
        let present = isNew ? [] : try gateway.table.elements(expecting: { wanted[$0] != nil })
        if !isNew {
            let learnt = LearntReplies(present)
            for (key, old) in sessions {
                var session = old
                for (tuple, standing) in session.transits {
                    let element = TableElement.divert(tuple, standing.transit == .guarded ? .guard : .queue)
                    // The kernel's clock has gone on: what it no longer holds is over. A new kernel has no old connections.
                    if !present.contains(element) { session.transits[tuple] = nil }
                }
                if !session.replies.isEmpty {
                    session.replies = session.replies.filter { present.contains(.reply($0)) }
                }
                if session.binding?.datapath == .queue {
                    for tuple in learnt.replies(of: session)
                    where session.hostSide != nil || boundSession(of: tuple.destination, home: key.home)?.key == key {
                        session.replies.insert(tuple)
                    }
                }
                if !session.transits.isEmpty {
                    session.replies.formUnion(session.trailingReplies.filter { present.contains(.reply($0)) })
                }
                if session == old { continue }
                if session.transits.count != old.transits.count { batch.sessions.append(session) }
                sessions[key] = session.isIdle ? nil : session
                let elements = session.elements()
                for element in old.elements().keys where elements[element] == nil && !element.isShared {
                    wanted[element] = nil
                }
                wanted.merge(elements) { first, _ in first }
            }
        }
        for (key, session) in sessions {
            if !session.transits.isEmpty { scheduleExpiry(of: session, since: Session(key: key)) }
        }
        try journal.write(batch)
        for session in sessions.values { gateway.adopt(session.elements().keys) }
        var change = TableChange()
        change.remove = present.filter { wanted[$0] == nil }
        change.add = wanted.filter { !present.contains($0.key) }.map { .init(element: $0.key, lifetime: $0.value) }
        if !change.isEmpty { try gateway.table.apply(change) }
        logger.notice(
            "\(sessions.count) sessions; table: \(change.add.count) elements added, \(change.remove.count) removed")
        return !batch.isEmpty
    }

    /// Takes up a migration of which an earlier process had passed the point of no return: what it still stops is reset
    /// again. False when it stops nothing any more.
    private func resume(_ entry: JournaledMigration) -> Bool {
        guard let before = entry.before.session, let fromHost = Endpoint(entry.fromHost),
            let datapath = Datapath(rawValue: entry.datapath), var session = sessions[sessions.key(of: before.id) ?? before.key],
            session.transits.values.contains(where: { $0.migration == entry.id && $0.transit != .guarded })
        else { return false }
        let key = session.key
        // A switch whose last step is missing: the client's way is opened now.
        let released = session
        for (tuple, standing) in session.transits
        where standing.transit == .frozen && tuple.destination == key.home && key.covers(tuple.source) {
            session.transits[tuple]?.transit = .awaitingSYN
        }
        let connections = entry.connections.compactMap(\.connection)
        for connection in connections where isBack(connection, of: session) {
            session.endTransit(of: connection.clientSide)
        }
        do {
            try gateway.install(
                SessionChange(from: released, to: session), undoneBy: SessionChange(from: session, to: released))
            try openEvents()
        } catch {
            logger.error("migration \(entry.id) cannot be resumed: \(error)")
            return false
        }
        keep(session)
        let request = MigrationRequest(
            session: key, to: entry.to.flatMap { Endpoint($0) }, datapath: datapath, passive: entry.passive)
        let machine = MigrationMachine(
            id: entry.id, request: request, session: session, lifetimes: configuration.lifetimes)
        let running = RunningMigration(machine, service: policy.service(of: key)?.name, eventLog: eventLog)
        running.before = before
        running.isUnderWay = true
        running.isResumed = true
        running.drain = entry.member?.drain
        if let member = entry.member { drains[member.drain]?.latest[member.place] = entry.id }
        migrations[entry.id] = running
        latest[key] = entry.id
        standing[key, default: []].insert(entry.id)
        awaitingReconnect.insert(entry.id, key)
        running.note("resumed", "by a daemon that started anew")
        for connection in connections {
            // The entry may not have been forgotten yet.
            if let stale = try? gateway.conntrack.entry(original: connection.clientSide),
                stale.reply.source == connection.serverSide.destination
            {
                _ = try? gateway.conntrack.delete(stale)
            }
        }
        for effect in running.machine.resume(connections, fromHost: fromHost, at: EventLoop.now) {
            if let event = perform(effect, of: running) { advance(running, event) }
        }
        return true
    }

    /// Whether the client of an old connection has opened its next one on the same four-tuple, while nobody was there to
    /// write it down: that one must not be reset.
    private func isBack(_ connection: LocatedConnection, of session: Session) -> Bool {
        var original = connection.clientSide
        if original == session.key.original {
            original = session.tracked
        } else if let binding = session.binding, binding.datapath == .queue {
            original.destination = binding.host
        }
        guard let entry = try? gateway.conntrack.entry(original: original) else { return false }
        switch entry.phase {
        case .opening, .halfOpen, .established: return entry.reply.source != connection.serverSide.destination
        case .closing, .leaving, .closed: return false
        }
    }

    /// Stops what runs on this thread; the kernel keeps the table.
    func stop() {
        endEvents()
        stopWebhooks()
        stopHooks()
        commit()
        loop.turnEnded = nil
        closeEvents()
        for ring in gateway.rings { loop.forget(ring.eventFileDescriptor) }
        gateway.stopQueues()
        for running in migrations.values { running.resumeWaiters(loop) }
        for drain in drains.values { drain.resumeWaiters(loop) }
    }
}

/// The replies that a table holds, by what a session knows of its own.
private struct LearntReplies {
    private var every: Set<FourTuple> = []
    /// By the host's endpoint, and by that and the client's address (with port 0).
    private var ofHost: [Endpoint: [FourTuple]] = [:]
    private var ofClient: [FourTuple: [FourTuple]] = [:]

    init(_ elements: Set<TableElement>) {
        for case .reply(let tuple) in elements {
            every.insert(tuple)
            ofHost[tuple.source, default: []].append(tuple)
            ofClient[Self.anyPort(tuple), default: []].append(tuple)
        }
    }

    private static func anyPort(_ tuple: FourTuple) -> FourTuple {
        FourTuple(source: tuple.source, destination: Endpoint(address: tuple.destination.address, port: 0))
    }

    /// Those that may be answers to connections of this session.
    func replies(of session: Session) -> [FourTuple] {
        let any = FourTuple(source: session.host, destination: session.key.clientEndpoint)
        let reply = session.hostSide?.reversed ?? any
        switch session.key.scope {
        case .connection: return every.contains(reply) ? [reply] : []
        case .client: return ofClient[reply] ?? []
        case .service: return ofHost[session.host] ?? []
        }
    }
}
