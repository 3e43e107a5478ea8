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
                    "No session \(order.what) is to be moved: see \"nfqmigctl connections\" and \"nfqmigctl sessions\"."
            )
        }
        if order.dryRun ?? false { return dryRun(order, selection, members) }
        lastMigration += 1
        let drain = RunningDrain(
            id: lastMigration, order: order, caller: caller, selection: selection, members: members)
        try journal(drain)
        drains[drain.id] = drain
        forgetOldDrains()
        logger.notice(
            "drain \(order.what) begins", metadata: ["drain": "\(drain.id)", "sessions": "\(members.count)"])
        eventLog.publish(.drainProgress, "requested", "\(members.count) sessions \(order.what)", drain: drain.id)
        advance(drain, .begin)
        return drain.report
    }

    /// A drain's report; waits until it has an outcome, `wait` nanoseconds at most.
    func drain(_ id: UInt64, wait: UInt64) async throws(Problem) -> DrainReport {
        if let report = endedDrains[id] { return report }
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
        DrainList(drains: (endedDrains.values + drains.values.map(\.report)).sorted { $0.id < $1.id })
    }

    /// Pauses, resumes or cancels a drain.
    func tell(drain id: UInt64, _ event: Drain.Event) throws(Problem) -> DrainReport {
        if let report = endedDrains[id] { return report }
        let drain = try find(drain: id)
        if !drain.machine.isFinished { advance(drain, event) }
        return drain.report
    }

    private func find(drain id: UInt64) throws(Problem) -> RunningDrain {
        guard let drain = drains[id] else {
            throw Problem(
                kind: .unknownDrain,
                detail: "There is no drain \(id): those that run and a hundred ended ones are known.")
        }
        return drain
    }

    private func dryRun(
        _ order: DrainOrder, _ selection: DrainSelection, _ members: [DrainMembers.Member]
    ) -> DrainReport {
        let drain = RunningDrain(id: 0, order: order, caller: .daemon, selection: selection, members: members)
        var report = drain.report
        report.state = Drain.State.finished.rawValue
        var spread = Spread(weights: selection.hosts.map(\.weight))
        report.sessions = members.map { member in
            let host = selection.hosts[spread.assign()].host
            let name = host.map { $0.ports == nil ? "\($0.endpoints(for: member.key.home)[0])" : "\($0)" }
            return DrainSession(
                client: member.key.clientText, home: "\(member.key.home)", to: name ?? "home")
        }
        for (index, count) in spread.counts.enumerated() { report.to[index].sessions = count }
        return report
    }

    private func forgetOldDrains() {
        let ended = (drains.values.filter { $0.machine.isFinished }.map(\.id) + endedDrains.keys).sorted()
        for id in ended.dropLast(100) {
            drains[id] = nil
            endedDrains[id] = nil
            do {
                try journal.forgetDrain(id)
            } catch {
                logger.error("\(error)")
            }
        }
    }

    // MARK: - What a drain's machine wants

    func advance(_ drain: RunningDrain, _ event: Drain.Event) {
        var waiting = [event]
        while !waiting.isEmpty {
            let effects = drain.machine.handle(waiting.removeFirst(), at: EventLoop.now)
            journalProgress(of: drain)
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
            return begin(member, to: endpoints(of: host, for: key.home, drain), of: drain)
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

    /// The endpoints of a to-host of which one is to serve a session of `home`: those that have answered, if any was asked.
    private func endpoints(of host: Int, for home: Endpoint, _ drain: RunningDrain) -> [Endpoint] {
        let all = drain.selection.hosts[host].host?.endpoints(for: home).filter { $0 != home } ?? []
        let listening = all.filter { drain.listening.contains($0) }
        return listening.isEmpty ? all : listening
    }

    private func begin(_ member: Int, to hosts: [Endpoint], of drain: RunningDrain) -> [Drain.Event] {
        let selection = drain.selection
        let key = drain.members[member].key
        var request = MigrationRequest(
            session: key, to: hosts.first, datapath: selection.datapath, passive: selection.passive, checksHost: false)
        if hosts.count > 1 { request.candidates = hosts }
        if let obstacle = obstacle(to: request) {
            tellLater(drain, .ended(member, .failed(reason: "\(obstacle)")))
            return []
        }
        // A drain has time: where others are refused, it waits.
        if let until = policy.place(for: key, to: request.to, in: paces, at: EventLoop.now) {
            let service = policy.service(of: key)
            let reason = "service \"\(service?.name ?? "")\": \((service?.rate ?? 0).plainText) migrations per second"
            return [.postponed(member, until: until, reason: reason)]
        }
        begin(request, member, isReturning: false, of: drain)
        return []
    }

    /// A session of a failed canary goes where it was.
    private func sendBack(_ member: Int, of drain: RunningDrain) {
        let before = drain.members[member].before
        let request = MigrationRequest(
            session: drain.members[member].key, to: before?.host,
            datapath: before?.datapath ?? drain.selection.datapath, passive: drain.selection.passive, checksHost: false)
        if let until = policy.place(for: request.session, to: request.to, in: paces, at: EventLoop.now) {
            loop.schedule(at: until) { self.sendBack(member, of: drain) }
            return
        }
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

    /// A member's migration has its outcome. The drain is told a turn of the loop later, of all at once.
    func memberEnded(_ running: RunningMigration, of drain: RunningDrain) {
        guard let (member, isReturning) = drain.migrations[running.machine.id] else { return }
        guard !isReturning else {
            let (key, before) = (drain.members[member].key, drain.members[member].before)
            let isBack = sessions[key]?.binding?.host == before?.host
            journalReturn(member, isBack: isBack, of: drain)
            return tellLater(drain, .returned(member, isBack: isBack))
        }
        let result: Drain.Result =
            switch running.machine.outcome {
            case .proven: .moved(isProven: true)
            case .unproven, .superseded, nil: .moved(isProven: false)
            case .failed(.unknownConnection), .failed(.alreadyThere): .gone
            case .failed(let failure): .failed(reason: "\(failure)")
            }
        journalTurn(member, result, running, of: drain)
        tellLater(drain, .ended(member, result))
    }

    func tellLater(_ drain: RunningDrain, _ event: Drain.Event) {
        drain.news.append(event)
        guard drain.news.count == 1 else { return }
        loop.next {
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
        do {
            try journal.write(drain.report, of: drain.id)
        } catch {
            logger.error("\(error)", metadata: ["drain": "\(drain.id)"])
        }
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
        let homes = Set(drain.members.all.map(\.key.home.port))
        for (index, each) in drain.selection.hosts.enumerated() {
            guard let host = each.host else {
                tellLater(drain, .checked(host: index, refusal: nil))
                continue
            }
            let ports = host.ports.map { Array($0) } ?? homes.sorted()
            let endpoints = ports.map { Endpoint(address: host.address, port: $0) }
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
        let asked = drain.selection.hosts.reduce(0) { $0 + max($1.host?.ports?.count ?? 1, homes.count) }
        drain.checks.removeFirst(max(0, drain.checks.count - 8 * asked))
    }

    private func answered(
        _ endpoint: Endpoint, _ failure: String?, host: Int, of drain: RunningDrain
    ) {
        guard var answers = drain.answers[host] else { return }
        answers.open -= 1
        if failure == nil { drain.listening.insert(endpoint) } else { drain.listening.remove(endpoint) }
        if let reason = failure, answers.refusal == nil {
            answers.refusal = "\(MigrationFailure.hostNotListening(endpoint, reason: reason))"
        }
        drain.answers[host] = answers.open == 0 ? nil : answers
        // Of a range of ports one is enough.
        if let range = drain.selection.hosts[host].host, let ports = range.ports, ports.count > 1,
            ports.contains(where: { drain.listening.contains(Endpoint(address: range.address, port: $0)) })
        {
            answers.refusal = nil
        }
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
        guard let session = sessions.session(answeredBy: entry.original.reversed) ?? session(of: entry.original),
            entry.reply.source == session.host,
            let (drain, member) = canary(session.key)
        else { return }
        let clientSide = FourTuple(source: clientEndpoint(of: entry, session), destination: session.key.home)
        if let id = drain.latest[member], let running = migrations[id] {
            guard running.machine.isSwitched, running.isResumed || running.machine.established.contains(clientSide),
                drain.migrations[id]?.isReturning == false
            else { return }
            running.note("reset", "by \(session.host)")
        } else if !drain.earlier.contains(member) {
            return
        }
        let reason = "The to-host \(session.host) accepted the new connection of \(clientSide.source) and reset it."
        tellLater(drain, .broken(member, reason: reason))
    }

    /// The drain whose canary this session is in, and its place there.
    private func canary(_ key: SessionKey) -> (RunningDrain, Int)? {
        for drain in drains.values where drain.machine.state == .canary || drain.machine.state == .settling {
            if let member = drain.members.place(of: key) { return (drain, member) }
        }
        return nil
    }

    /// What is wrong with the first of these sessions that has not got its new connection.
    private func firstBroken(_ members: [Int], of drain: RunningDrain) -> String? {
        for member in members {
            let key = drain.members[member].key
            let host = sessions[key]?.host ?? key.home
            if let running = drain.latest[member].flatMap({ migrations[$0] }), !drain.earlier.contains(member) {
                let machine = running.machine
                if machine.connections.isEmpty || machine.request.passive && machine.established.isEmpty { continue }
                // Whether one that was taken up again had its new connection before that, conntrack knows.
                guard !machine.established.isEmpty || running.isResumed else {
                    return "The client of \(key) has not come back through its to-host \(host)."
                }
            } else if drain.turns[member]?.isAwaited != true {
                continue
            }
            guard isEstablished(key) else { return "The new connection of \(key) did not stay established on \(host)." }
        }
        return nil
    }

    /// Whether a session has a connection that is established with its host.
    private func isEstablished(_ key: SessionKey) -> Bool {
        let session = sessions[key]
        let host = session?.host ?? key.home
        let original = session?.tracked ?? key.original
        func isUp(_ entry: ConnectionEntry) -> Bool {
            entry.reply.source == host && entry.state == .established && entry.phase == .established
        }
        if key.clientPort != nil {
            return (try? gateway.conntrack.entry(original: original)).flatMap { $0 }.map(isUp) ?? false
        }
        let entries = try? gateway.conntrack.entries(client: key.client) {
            $0.original.destination == original.destination
        }
        return entries?.contains(where: isUp) ?? false
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
                    DrainOrder.self, expected: "a drain's order: send JSON with from or service, and to")
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
