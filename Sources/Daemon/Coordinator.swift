// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Ruleset
internal import Spoofer
internal import Wire

/// The control plane: one actor on the event loop's thread. It owns the sessions and the migrations, carries out what
/// the migrations' machines say, and tells them what has happened. It decides nothing about a migration itself.
actor Coordinator {
    nonisolated let loop: EventLoop
    nonisolated var unownedExecutor: UnownedSerialExecutor { unsafe loop.asUnownedSerialExecutor() }

    let configuration: Configuration
    let gateway: Gateway
    let journal: any Journal
    let logger: Logger
    let eventLog = EventLog()
    /// Whether journal, table and this actor have agreed since the start.
    var isReconciled = false
    /// Whether the daemon is about to end: nobody waits any more.
    var isStopping = false
    let audit: AuditLog
    /// What may be moved, and when each service's latest migrations were admitted.
    var policy: Policy
    var paces: [String: Pace] = [:]
    var hooks: [Hook]
    let hookQueue = HookQueue()
    /// Webhooks that are told of events, by name.
    var webhooks: [String: RunningWebhook] = [:]
    /// Switched migrations that end by themselves, by number, and the timers of their ends.
    var lifetimes: [UInt64: StandingLifetime] = [:]
    var lifetimeTimers: [UInt64: UInt64] = [:]

    /// Every session that is bound, in migration, or under guard.
    var sessions = SessionTable()
    /// When a session of scope `connection` was last given a connection, by its number: nanoseconds.
    var given: [UInt64: UInt64] = [:]
    var migrations: [UInt64: RunningMigration] = [:]
    /// The latest migration of a session that was switched.
    var latest: [SessionKey: UInt64] = [:]
    /// The migration of a session that is not switched yet.
    var preparing: [SessionKey: UInt64] = [:]
    /// Migrations in the journal whose stopped segments still need user space.
    var standing: [SessionKey: Set<UInt64>] = [:]
    var lastMigration: UInt64 = 0
    /// When clients' own connections are looked at that have another source port.
    var directTimer: UInt64?
    /// Reset handshakes, by the four-tuple in which the victim's segments arrive.
    var handshakes: [FourTuple: RunningHandshake] = [:]
    /// Passive migrations, by the four-tuples that are shown to the other side.
    var passives: [FourTuple: PassiveRelay] = [:]
    /// What the queue threads have observed and nobody has looked at yet.
    var setAside: [Observation] = []
    /// Whether a timer will look for further observations, and whether there were any since it was set.
    var isLooking = false
    var hasObserved = false
    /// Observations that full rings had lost when the kernel's table was asked instead.
    var knownOverflows: UInt64 = 0
    /// Whether the table was made while there were sessions that user space carries, and when it was last asked.
    var mayHaveForgotten = false
    var askedTable: UInt64 = 0
    /// What ends replies whose connections are over.
    var sweeps = ReplySweeps()
    var events: ConntrackEvents?
    /// Connections that these have announced.
    var announced = AnnouncedConnections()
    /// Migrations that wait for their client's new connection.
    var awaitingReconnect = AwaitedReconnects()
    /// What this turn of the loop has decided and not yet carried out.
    var pending = PendingWork()
    var isCommitting = false
    /// When transits end by themselves, by their four-tuple.
    var expiries: [FourTuple: (id: UInt64, timer: UInt64)] = [:]
    /// Drains, by their numbers.
    var drains: [UInt64: RunningDrain] = [:]
    /// The reports of drains that ended in an earlier process.
    var endedDrains: [UInt64: DrainReport] = [:]
    /// Ended migrations that no running drain needs, oldest first.
    var endedMigrations: [UInt64] = []

    init(
        configuration: Configuration, gateway: sending Gateway, journal: sending any Journal, loop: EventLoop,
        logger: Logger
    ) {
        self.configuration = configuration
        self.gateway = gateway
        self.journal = journal
        self.loop = loop
        self.logger = logger
        policy = configuration.policy
        hooks = configuration.hooks
        audit = AuditLog(directory: configuration.stateDirectory, logger: logger)
    }

    // MARK: - Requests

    /// Begins a migration. Throws a `Problem` when the request makes no sense; what the network says about it is the
    /// migration's outcome.
    func migrate(_ order: MigrationOrder, caller: Caller) throws(Problem) -> MigrationReport {
        var request: MigrationRequest
        let order = try named(order)
        do {
            request = try MigrationRequest(
                order, defaultDatapath: configuration.datapath, checksHost: configuration.checkHost)
            request.lifetime = try RequestedLifetime(order, of: request)
        } catch {
            throw error.problem
        }
        let dump: [ConnectionEntry]?
        let position = announcements(before: request)
        (request.session.home, dump) = clientsView(of: request)
        if let refusal = obstacle(to: request) { throw refusal.problem }
        let id = begin(request, dump: dump, after: position, caller: caller)
        commit()
        guard let running = migrations[id] else {
            throw Problem(kind: .unknownMigration, detail: "Migration \(id) has gone.")
        }
        if case .failed(let failure)? = running.machine.outcome { throw failure.problem }
        return report(running)
    }

    /// A migration's report; waits until it has an outcome, `wait` nanoseconds at most.
    func migration(_ id: UInt64, wait: UInt64) async throws(Problem) -> MigrationReport {
        guard let running = migrations[id] else {
            throw Problem(
                kind: .unknownMigration,
                detail: "There is no migration \(id): the daemon remembers those since its start.")
        }
        if running.machine.isFinished || wait == 0 { return report(running) }
        let waiter = Waiter()
        running.waiters.append(waiter)
        waiter.timer = loop.schedule(at: EventLoop.now + wait) { waiter.resume() }
        await waiter.wait()
        if let timer = waiter.timer { loop.cancel(timer) }
        running.waiters.removeAll { $0 === waiter }
        return report(running)
    }

    func sessionList() -> SessionList {
        let list = sessions.values.map { session in
            var summary = SessionSummary(
                id: session.id, client: session.key.clientText, home: "\(session.key.home)", host: "\(session.host)",
                scope: session.key.scope.rawValue, datapath: session.binding?.datapath.rawValue,
                transits: session.transits.count, migration: latest[session.key])
            summary.sourcePort = session.binding?.sourcePort
            return summary
        }
        return SessionList(sessions: list.sorted { ($0.client, $0.home) < ($1.client, $1.home) })
    }

    func migrationList() -> MigrationList {
        MigrationList(migrations: migrations.values.sorted { $0.machine.id < $1.machine.id }.map(report))
    }

    func connectionList() throws(Problem) -> ConnectionList {
        do {
            let entries = try gateway.conntrack.entries()
            return ConnectionList(
                connections: entries.map { entry in
                    let (client, home, host) = clientsView(of: entry)
                    return ConnectionSummary(
                        client: "\(client)", home: "\(home)", host: "\(host)",
                        state: entry.state.map { "\($0)" } ?? "unknown")
                })
        } catch {
            throw Problem(kind: .kernelRefused, detail: "\(error)")
        }
    }

    func counters() -> CounterList {
        CounterList(
            queues: gateway.queues.enumerated().map { index, queue in
                let counters = queue.counters
                return QueueCounters(
                    queue: Int(configuration.firstQueue) + index, packets: counters.packets, octets: counters.octets,
                    accepted: counters.accepted, rewritten: counters.rewritten, dropped: counters.dropped,
                    malformed: counters.malformed, truncated: counters.truncated, overruns: counters.overruns,
                    verdictErrors: counters.verdictErrors)
            },
            replies: ReplyCounters(learnt: sessions.replyCount, size: gateway.replySize, ended: sweeps.ended))
    }

    // MARK: - A migration's steps

    /// Starts a migration, if the policy allows it, and runs it as far as it goes at once. `dump`: the client's connections,
    /// if just listed, `after` so many announcements of new ones.
    func begin(
        _ request: MigrationRequest, dump: [ConnectionEntry]? = nil, after position: UInt64? = nil, caller: Caller,
        drain: UInt64? = nil
    ) -> UInt64 {
        var request = request
        request.prepares = !hooks(at: .prepare, for: request).isEmpty
        let admission = admission(of: request, caller: caller)
        let key = request.session
        commit(before: key)
        lastMigration += 1
        // One that is not switched yet gives way at once; one that is, when this one is switched: it may be refused.
        if admission == .admitted, let preparing = preparing[key].flatMap({ migrations[$0] }) {
            advance(preparing, .superseded)
        }
        let machine = MigrationMachine(
            id: lastMigration, request: request, session: sessions[key] ?? Session(key: key, id: lastMigration),
            lifetimes: configuration.lifetimes)
        let running = RunningMigration(machine, service: policy.service(of: key)?.name, eventLog: eventLog)
        running.dump = dump
        running.dumpPosition = position
        running.drain = drain
        migrations[lastMigration] = running
        running.note("requested")
        if case .refused(let refusal) = admission {
            advance(running, .refused(refusal))
            return running.machine.id
        }
        preparing[key] = lastMigration
        logger.log(level: running.logLevel, "migration requested", metadata: running.metadata)
        advance(running, .requested)
        return running.machine.id
    }

    /// Tells a migration what has happened and carries out what follows, until nothing more follows at once.
    func advance(_ running: RunningMigration, _ event: MigrationMachine.Event) {
        if !isCommitting { commit(before: running.machine.request.session) }
        var pending = [event]
        while !pending.isEmpty {
            let event = pending.removeFirst()
            if let session = sessions[running.machine.request.session] { running.machine.adopt(session) }
            for effect in running.machine.handle(event, at: EventLoop.now) {
                if let next = perform(effect, of: running) { pending.append(next) }
            }
        }
        setDeadline(of: running)
    }

    private func setDeadline(of running: RunningMigration) {
        if let timer = running.timer { loop.cancel(timer) }
        running.timer = nil
        guard let deadline = running.machine.deadline else { return }
        running.timer = loop.schedule(at: deadline) { self.advance(running, .deadlinePassed) }
    }

    /// Keeps the last thousand ended migrations for those who ask, and a drain's as long as it runs.
    func ended(_ running: RunningMigration) {
        let id = running.machine.id
        guard let drain = running.drain.flatMap({ drains[$0] }), !drain.machine.isFinished else {
            return forgetLater([id])
        }
        memberEnded(running, of: drain)
    }

    func forgetLater(_ ids: [UInt64]) {
        endedMigrations += ids
        guard endedMigrations.count > 1100 else { return }
        for id in endedMigrations.prefix(endedMigrations.count - 1000) {
            guard let key = migrations[id]?.machine.request.session else { continue }
            migrations[id] = nil
            if latest[key] == id { latest[key] = nil }
        }
        endedMigrations.removeFirst(endedMigrations.count - 1000)
    }

    // MARK: - Names

    /// The home as the client sees it, since somebody may name the host behind a virtual address, or the present
    /// to-host; and the client's connections, if they had to be listed for it.
    private func clientsView(of request: MigrationRequest) -> (home: Endpoint, dump: [ConnectionEntry]?) {
        let key = request.session
        if sessions[key] != nil { return (key.home, nil) }
        if key.clientPort != nil, let entry = try? gateway.conntrack.entry(original: key.original) {
            return (entry.original.destination, nil)
        }
        guard let entries = try? gateway.conntrack.entries(client: key.client) else { return (key.home, nil) }
        let candidates = entries.filter { key.clientPort == nil || $0.original.source.port == key.clientPort }
        if candidates.contains(where: { $0.original.destination == key.home }) { return (key.home, entries) }
        for session in sessions.sessions(of: key.client)
        where session.key.clientPort == key.clientPort && session.binding?.host == key.home {
            return (session.key.home, entries)
        }
        let behind = Set(candidates.filter { $0.reply.source == key.home }.map(\.original.destination))
        return (behind.count == 1 ? behind.first ?? key.home : key.home, entries)
    }

    /// A connection's client and home, as the client sees them, and its host.
    func clientsView(of entry: ConnectionEntry) -> (client: Endpoint, home: Endpoint, host: Endpoint) {
        guard let session = sessions.session(answeredBy: entry.original.reversed) else {
            return (entry.original.source, entry.original.destination, entry.reply.source)
        }
        let client = clientEndpoint(of: entry, session)
        return (client, session.key.home, entry.reply.source)
    }

    /// The endpoint that a client calls its own, of a connection that may belong to `session`.
    func clientEndpoint(of entry: ConnectionEntry, _ session: Session) -> Endpoint {
        session.hostSide == entry.original ? session.key.clientEndpoint : entry.original.source
    }

    /// What stands in the way of a request, among the sessions that are there.
    func obstacle(to request: MigrationRequest) -> MigrationFailure? {
        let refusals = request.hosts.map { otherHome(of: request, at: $0) }
        if let first = refusals.first, refusals.allSatisfy({ $0 != nil }) { return first }
        return bindingOfOtherScope(request).map { .otherScopeBound(request.session, existing: $0) }
    }

    /// A session of the same client that the queue datapath could not tell from this one: a reply names the host and the
    /// client, not the home. Two single connections are told apart by their source ports.
    func otherHome(of request: MigrationRequest, at host: Endpoint) -> MigrationFailure? {
        guard request.datapath == .queue else { return nil }
        let key = request.session
        let other = sessions.sessions(around: key).first {
            $0.binding?.datapath == .queue && $0.binding?.host == host && $0.key.home != key.home
                && ($0.key.scope != .connection || key.scope != .connection) && $0.key.sharesClient(with: key)
        }
        return other.map { .hostServesOtherHome(key, host: host, other: $0.key.home) }
    }
}
