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
        loop.turnBegan = { self.lookAtObservations() }
        loop.turnEnded = { self.commit() }
        // Left to itself, the library raises its limits with the first large array, and keeps up to 64 MiB for the next.
        nfqmig_limit_heap(1 << 18)
        let end = try journal.takeOrderlyEnd()
        var contents = try journal.load()
        try beginEvents()
        lastMigration = max(contents.lastMigration, contents.sessions.map(\.id).max() ?? 0)
        var known = contents.sessions
        contents.sessions = []
        let takenBack = takeBack(contents.migrations, in: &known)
        // A new kernel has no old connections, and so nothing to stop or to learn from.
        if try !gateway.table.exists {
            for place in known.indices where !known[place].transits.isEmpty { known[place].transits = [:] }
        }
        // The queues come first: another daemon has them bound, and then this one must not touch the table.
        try gateway.startQueues(configuration, knowing: known)
        // The kernel has most of the work now, if there is any.
        let table = ParallelComputation { [known] in SessionTable(known) }
        let options = gateway.options
        logger.notice(
            "\(configuration.queues) queues from number \(configuration.firstQueue) on",
            metadata: [
                "packets": "\(options.maximumLength)", "receive-buffer": "\(options.receiveBuffer)",
                "send-buffer": "\(options.sendBuffer)",
            ])
        for queue in gateway.queues { if let shortfall = queue.shortfall { logger.warning("\(shortfall)") } }
        // A table that has to be made, or made anew by another version, knows its elements from the first packet on. What the
        // older one has learnt is nowhere else: without it the replies of connections would go to their clients as they are.
        var learnt: Set<TableElement> = []
        let established = try gateway.table.establish(carrying: additions(for: known, keeping: &learnt))
        known = []
        sessions = table.result()
        sessions.learn(from: learnt)
        logger.notice(
            "table \(established)", metadata: ["queue": "\(gateway.table.queueStatement.map { "\($0)" } ?? "unknown")"])
        mayHaveForgotten = established != .adopted && sessions.values.contains { $0.binding?.datapath == .queue }
        let comparison =
            established != .adopted ? .nothing : try takenBack.isEmpty ? comparison(after: end) : .everything
        try gateway.post(reconcile(comparison, writing: takenBack).map { .remove($0) })
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
        watchTable()
        scheduleSweep()
        try startWebhooks()
        // What it took to read all that is several times what is left of it.
        nfqmig_trim_heap()
        nfqmig_limit_heap(4 << 20)
        isReconciled = true
        if policy.services.isEmpty { warnOfEmptyPolicy() }
    }

    /// Puts sessions back whose migrations were not switched for good; returns them as they are to be.
    private func takeBack(_ migrations: [JournaledMigration], in sessions: inout [Session]) -> [Session] {
        var takenBack: [Session] = []
        for entry in migrations where entry.stage == .switching {
            guard let before = entry.before.session else { continue }
            takenBack.append(before)
            logger.notice("migration \(entry.id) was not switched for good: taken back")
        }
        if takenBack.isEmpty { return [] }
        let before = Dictionary(takenBack.map { ($0.key, $0) }) { $1 }
        sessions.removeAll { before[$0.key] != nil }
        sessions += before.values.filter { !$0.isIdle }
        return takenBack
    }

    /// Takes up a migration of which an earlier process had passed the point of no return: what it still stops is reset
    /// again. False when it stops nothing any more.
    private func resume(_ entry: JournaledMigration) -> Bool {
        guard let before = entry.before.session, let fromHost = Endpoint(entry.fromHost),
            let datapath = Datapath(rawValue: entry.datapath),
            var session = sessions[sessions.key(of: before.id) ?? before.key],
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
        for connection in connections where session.transits[connection.clientSide]?.migration == entry.id {
            // The entry may not have been forgotten yet. Of a connection that a later migration has moved on it is another one's.
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
        loop.turnBegan = nil
        loop.turnEnded = nil
        closeEvents()
        for ring in gateway.rings { loop.forget(ring.eventFileDescriptor) }
        gateway.stopQueues()
        writeOrderlyEnd()
        for running in migrations.values { running.resumeWaiters(loop) }
        for drain in drains.values { drain.resumeWaiters(loop) }
    }
}
