// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Logging
internal import Migration
internal import Wire

extension Coordinator {
    // MARK: - Requests

    /// Begins a drain, or says what one would do.
    func drain(_ order: DrainOrder, caller: Caller) throws(Problem) -> DrainReport {
        let selection: DrainSelection
        do {
            selection = try DrainSelection(
                order, defaultDatapath: configuration.datapath, checksHosts: configuration.checkHost)
        } catch {
            throw error.problem
        }
        let members = try members(selection)
        guard !members.isEmpty else {
            throw Problem(
                kind: .unknownConnection,
                detail:
                    "No session that \(order.from) serves matches: see \"nfqmigctl connections\" and \"nfqmigctl sessions\"."
            )
        }
        if order.dryRun ?? false { return dryRun(order, selection, members) }
        lastMigration += 1
        let drain = RunningDrain(
            id: lastMigration, order: order, caller: caller, selection: selection, members: members)
        drains[drain.id] = drain
        forgetOldDrains()
        logger.notice(
            "drain of \(order.from) begins", metadata: ["drain": "\(drain.id)", "sessions": "\(members.count)"])
        eventLog.publish(.drainProgress, "requested", "\(members.count) sessions of \(order.from)", drain: drain.id)
        advance(drain, .begin)
        return drain.report
    }

    /// A drain's report; waits until it has an outcome, `wait` nanoseconds at most.
    func drain(_ id: UInt64, wait: UInt64) async throws(Problem) -> DrainReport {
        let drain = try find(drain: id)
        if drain.machine.isFinished || wait == 0 { return drain.report }
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let waiter = Waiter(continuation)
            drain.waiters.append(waiter)
            waiter.timer = loop.schedule(at: EventLoop.now + wait) {
                waiter.resume()
                drain.waiters.removeAll { $0 === waiter }
            }
        }
        return drain.report
    }

    func drainList() -> DrainList {
        DrainList(drains: drains.values.sorted { $0.id < $1.id }.map(\.report))
    }

    /// Pauses, resumes or cancels a drain.
    func tell(drain id: UInt64, _ event: Drain.Event) throws(Problem) -> DrainReport {
        let drain = try find(drain: id)
        if !drain.machine.isFinished { advance(drain, event) }
        return drain.report
    }

    private func find(drain id: UInt64) throws(Problem) -> RunningDrain {
        guard let drain = drains[id] else {
            throw Problem(
                kind: .unknownDrain, detail: "There is no drain \(id): the daemon remembers those since its start.")
        }
        return drain
    }

    private func dryRun(
        _ order: DrainOrder, _ selection: DrainSelection, _ members: [RunningDrain.Member]
    ) -> DrainReport {
        let drain = RunningDrain(id: 0, order: order, caller: .daemon, selection: selection, members: members)
        var report = drain.report
        report.state = Drain.State.finished.rawValue
        var spread = Spread(weights: selection.hosts.map(\.weight))
        report.sessions = members.map { member in
            let host = selection.hosts[spread.assign()].host
            return DrainSession(
                client: member.key.clientText, home: "\(member.key.home)",
                to: host.map { "\($0.endpoint(for: member.key.home))" } ?? "home")
        }
        for (index, count) in spread.counts.enumerated() { report.to[index].sessions = count }
        return report
    }

    private func forgetOldDrains() {
        let ended = drains.values.filter { $0.machine.isFinished }.map(\.id).sorted()
        for id in ended.dropLast(100) { drains[id] = nil }
    }

    // MARK: - What a drain's machine wants

    private func advance(_ drain: RunningDrain, _ event: Drain.Event) {
        var waiting = [event]
        while !waiting.isEmpty {
            let effects = drain.machine.handle(waiting.removeFirst(), at: EventLoop.now)
            list(effects, of: drain)
            for effect in effects { waiting += perform(effect, of: drain) }
            drain.dump = nil
        }
        if let timer = drain.timer { loop.cancel(timer) }
        drain.timer = drain.machine.deadline.map { deadline in
            loop.schedule(at: deadline) { self.advance(drain, .deadlinePassed) }
        }
    }

    /// Sessions of any port are found by listing connections: once for all that begin together, not once for each.
    private func list(_ effects: [Drain.Effect], of drain: RunningDrain) {
        var beginning = 0
        for case .migrate(let member, _) in effects where drain.members[member].key.clientPort == nil { beginning += 1 }
        guard beginning > 1, let entries = try? gateway.conntrack.entries() else { return }
        drain.dump = Dictionary(grouping: entries, by: \.original.source.address)
    }

    private func perform(_ effect: Drain.Effect, of drain: RunningDrain) -> [Drain.Event] {
        switch effect {
        case .check: check(drain)
        case .migrate(let member, let host):
            let key = drain.members[member].key
            begin(member, to: drain.selection.hosts[host].host?.endpoint(for: key.home), of: drain)
        case .examine(let members): return [.examined(broken: firstBroken(members, of: drain))]
        case .sendBack(let members): for member in members { sendBack(member, of: drain) }
        case .progress(let step, let detail):
            eventLog.publish(.drainProgress, step, detail, drain: drain.id)
            logger.notice("drain: \(step)\(detail.map { ": \($0)" } ?? "")", metadata: ["drain": "\(drain.id)"])
            tellProgress(of: drain)
        case .finish(let outcome): finish(drain, outcome)
        }
        return []
    }

    private func begin(_ member: Int, to host: Endpoint?, of drain: RunningDrain) {
        let selection = drain.selection
        let key = drain.members[member].key
        let request = MigrationRequest(
            session: key, to: host == key.home ? nil : host, datapath: selection.datapath, passive: selection.passive,
            checksHost: false)
        if let obstacle = obstacle(to: request) {
            return tellLater(drain, .ended(member, .failed(reason: "\(obstacle)")))
        }
        begin(request, member, isReturning: false, of: drain)
    }

    /// A session of a failed canary goes where it was.
    private func sendBack(_ member: Int, of drain: RunningDrain) {
        let before = drain.members[member].before
        let request = MigrationRequest(
            session: present(member, of: drain), to: before?.host,
            datapath: before?.datapath ?? drain.selection.datapath, passive: drain.selection.passive, checksHost: false)
        begin(request, member, isReturning: true, of: drain)
    }

    private func begin(_ request: MigrationRequest, _ member: Int, isReturning: Bool, of drain: RunningDrain) {
        // The number is known before the migration is: it may end before `begin` returns.
        drain.migrations[lastMigration + 1] = (member, isReturning)
        drain.latest[member] = lastMigration + 1
        // What the daemon takes back by itself nobody has to be allowed to ask for.
        let caller = isReturning ? .daemon : drain.caller
        let dump = request.session.client.flatMap { client in drain.dump.map { $0[client] ?? [] } }
        _ = begin(request, dump: dump, caller: caller, drain: drain.id)
    }

    /// A member as it is called now: its client may have come back from another port.
    private func present(_ member: Int, of drain: RunningDrain) -> SessionKey {
        drain.latest[member].flatMap { migrations[$0]?.machine.request.session } ?? drain.members[member].key
    }

    /// A member's migration has its outcome. The drain is told a turn of the loop later, of all at once.
    func memberEnded(_ running: RunningMigration, of drain: RunningDrain) {
        guard let (member, isReturning) = drain.migrations[running.machine.id] else { return }
        guard !isReturning else {
            let key = present(member, of: drain)
            let isBack = sessions[key]?.binding?.host == drain.members[member].before?.host
            return tellLater(drain, .returned(member, isBack: isBack))
        }
        let result: Drain.Result =
            switch running.machine.outcome {
            case .proven: .moved(isProven: true)
            case .unproven, .superseded, nil: .moved(isProven: false)
            case .failed(.unknownConnection), .failed(.alreadyThere): .gone
            case .failed(let failure): .failed(reason: "\(failure)")
            }
        tellLater(drain, .ended(member, result))
    }

    private func tellLater(_ drain: RunningDrain, _ event: Drain.Event) {
        drain.news.append(event)
        guard drain.news.count == 1 else { return }
        loop.schedule(at: EventLoop.now) {
            let news = drain.news
            drain.news = []
            for event in news { self.advance(drain, event) }
        }
    }

    /// One event of progress a second.
    private func tellProgress(of drain: RunningDrain) {
        guard drain.progressTimer == nil, !drain.machine.isFinished else { return }
        drain.progressTimer = loop.schedule(at: EventLoop.now + 1_000_000_000) {
            drain.progressTimer = nil
            guard !drain.machine.isFinished else { return }
            let counts = drain.machine.counts
            if counts != drain.told {
                drain.told = counts
                self.eventLog.publish(
                    .drainProgress, "progress",
                    "\(counts.moved) of \(drain.members.count) moved, \(counts.inFlight) in flight",
                    drain: drain.id)
            }
            self.tellProgress(of: drain)
        }
    }

    private func finish(_ drain: RunningDrain, _ outcome: Drain.Outcome) {
        drain.finishedAt = EventLoop.wallClock
        if let timer = drain.progressTimer { loop.cancel(timer) }
        let counts = drain.machine.counts
        let summary =
            "\(counts.moved) of \(drain.members.count) moved, \(counts.gone) gone, \(counts.failed) failed, \(counts.returned) returned"
        let detail: String =
            switch outcome {
            case .completed: "completed: \(summary)"
            case .cancelled: "cancelled: \(summary)"
            case .failed(let reason): "failed: \(summary); \(reason)"
            }
        eventLog.publish(.drainFinished, "finished", detail, drain: drain.id)
        logger.notice("drain finished: \(detail)", metadata: ["drain": "\(drain.id)"])
        forgetLater(drain.migrations.keys.filter { migrations[$0]?.machine.isFinished ?? false }.sorted())
        drain.resumeWaiters(loop)
        drain.checks = []
        if awaitingReconnect.isEmpty { closeEventsWhenIdle() }
    }

    // MARK: - To-hosts

    /// Asks every to-host for a connection, on each port that sessions would use there.
    private func check(_ drain: RunningDrain) {
        let homes = Set(drain.members.map(\.key.home.port))
        for (index, each) in drain.selection.hosts.enumerated() {
            guard let host = each.host else {
                tellLater(drain, .checked(host: index, refusal: nil))
                continue
            }
            let endpoints = (host.port.map { [$0] } ?? homes.sorted()).map { Endpoint(address: host.address, port: $0) }
            drain.answers[index] = (endpoints.count, nil)
            for endpoint in endpoints {
                let timeout = UInt64(configuration.checkTimeout) * 1_000_000
                let check = HostCheck(endpoint, timeout: timeout, loop: loop) { result in
                    self.answered(endpoint, result, host: index, of: drain)
                }
                drain.checks.append(check)
            }
        }
        // The latest are enough: each holds itself while it takes its leave.
        drain.checks.removeFirst(max(0, drain.checks.count - 8 * drain.selection.hosts.count * max(1, homes.count)))
    }

    private func answered(
        _ endpoint: Endpoint, _ result: MigrationMachine.HostCheck, host: Int, of drain: RunningDrain
    ) {
        guard var answers = drain.answers[host] else { return }
        answers.open -= 1
        if case .failed(let reason) = result, answers.refusal == nil {
            answers.refusal = "\(MigrationFailure.hostNotListening(endpoint, reason: reason))"
        }
        drain.answers[host] = answers.open == 0 ? nil : answers
        if answers.open == 0 { tellLater(drain, .checked(host: host, refusal: answers.refusal)) }
    }

    // MARK: - The canary

    /// Whether conntrack's events are wanted beyond the migrations that wait for a client.
    var isWatchingCanary: Bool {
        drains.values.contains { $0.machine.state == .canary || $0.machine.state == .settling }
    }

    /// A connection was reset: is it the new one of a session of a canary?
    func observeCanary(_ entry: ConnectionEntry) {
        guard entry.state == .close else { return }
        let reply = FourTuple(source: entry.original.destination, destination: entry.original.source)
        guard let session = session(of: entry.original) ?? sessions.session(answeredBy: reply),
            let running = latest[session.key].flatMap({ migrations[$0] }), running.switchedAt != nil,
            let drain = running.drain.flatMap({ drains[$0] }),
            let (member, isReturning) = drain.migrations[running.machine.id], !isReturning
        else { return }
        let clientSide = FourTuple(source: entry.original.source, destination: session.key.home)
        guard running.machine.established.contains(clientSide), entry.reply.source == session.host else { return }
        let reason = "The to-host \(session.host) accepted the new connection of \(clientSide.source) and reset it."
        running.note("reset", reason)
        tellLater(drain, .broken(member, reason: reason))
    }

    /// What is wrong with the first of these sessions that has not got its new connection.
    private func firstBroken(_ members: [Int], of drain: RunningDrain) -> String? {
        for member in members {
            guard let running = drain.latest[member].flatMap({ migrations[$0] }) else { continue }
            let key = present(member, of: drain)
            let machine = running.machine
            if machine.connections.isEmpty || machine.request.passive && machine.established.isEmpty { continue }
            guard !machine.established.isEmpty else {
                return
                    "The client of \(key) has not come back through its to-host \(sessions[key]?.host ?? machine.fromHost)."
            }
            let isUp = machine.established.contains { tuple in
                var original = tuple
                if let binding = sessions[key]?.binding, binding.datapath == .queue {
                    original.destination = binding.host
                }
                let entry = try? gateway.conntrack.entry(original: original)
                return entry?.state == .established && entry?.phase == .established
            }
            guard isUp else {
                return "The new connection of \(key) did not stay established on \(sessions[key]?.host ?? key.home)."
            }
        }
        return nil
    }
}

extension Coordinator {
    /// Many at once: what `nfqmigctl drain` asks for.
    nonisolated var drainRoutes: [ControlRoute] {
        let missing = Problem(kind: .unknownDrain, detail: "A drain's id is a whole number.")
        let tell = { @Sendable (request: ControlRequest, event: Drain.Event) async throws -> ControlAnswer in
            let id = try request.identifier("id", orThrow: missing)
            return .document(try await self.tell(drain: id, event))
        }
        return [
            ControlRoute("GET", "/v1/drains") { _ in .document(await self.drainList()) },
            ControlRoute("POST", "/v1/drains", longestBody: ControlRoute.longBody) { request in
                let order = try await request.longDocument(
                    DrainOrder.self, expected: "a drain's order: send JSON with from and to")
                let report = try await self.drain(order, caller: request.caller)
                return .document(report, status: report.id == 0 ? 200 : 201)
            },
            ControlRoute("GET", "/v1/drains/:id", query: ["wait"]) { request in
                let id = try request.identifier("id", orThrow: missing)
                return .document(try await self.drain(id, wait: try request.wait()))
            },
            ControlRoute("POST", "/v1/drains/:id/pause") { try await tell($0, .pause) },
            ControlRoute("POST", "/v1/drains/:id/resume") { try await tell($0, .resume) },
            ControlRoute("POST", "/v1/drains/:id/cancel") { try await tell($0, .cancel) },
        ]
    }
}
