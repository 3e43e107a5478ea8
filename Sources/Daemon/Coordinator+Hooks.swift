// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Logging
internal import Migration
internal import Wire

/// Hooks that run and hooks that wait: a drain of thousands must not start thousands of programs at once.
final class HookQueue {
    /// How many hooks run at the same time.
    static let most = 16

    final class Job {
        let hook: Hook
        let migration: UInt64
        let completion: (HookResult) -> Void
        var isRunning = false
        var program: HookProgram?
        var request: Task<Void, Never>?

        init(_ hook: Hook, migration: UInt64, completion: @escaping (HookResult) -> Void) {
            self.hook = hook
            self.migration = migration
            self.completion = completion
        }

        /// Ends what runs; its completion is not called.
        func cancel() {
            program?.cancel()
            request?.cancel()
        }
    }

    var jobs: [UInt64: Job] = [:]
    private var order: [UInt64] = []
    private var last: UInt64 = 0

    func add(_ job: Job) {
        last += 1
        jobs[last] = job
        order.append(last)
    }

    /// Takes a job out; nil when it has gone already.
    func remove(_ id: UInt64) -> Job? {
        order.removeAll { $0 == id }
        return jobs.removeValue(forKey: id)
    }

    /// The next job to start. One migration's hooks run one after the other.
    func next() -> (id: UInt64, job: Job)? {
        let running = jobs.values.filter(\.isRunning)
        guard running.count < Self.most else { return nil }
        let busy = Set(running.map(\.migration))
        for id in order {
            if let job = jobs[id], !job.isRunning, !busy.contains(job.migration) { return (id, job) }
        }
        return nil
    }

    func ids(of migration: UInt64, at point: Hook.Point) -> [UInt64] {
        order.filter { jobs[$0]?.migration == migration && jobs[$0]?.hook.point == point }
    }
}

extension Coordinator {
    /// The hooks that a migration meets at a point, in the configuration's order.
    func hooks(at point: Hook.Point, for request: MigrationRequest) -> [Hook] {
        let service = policy.service(of: request.session)?.name
        return hooks.filter { $0.point == point && ($0.service == nil || $0.service == service) }
    }

    /// Runs the prepare hooks, one after the other; the first that fails ends the migration.
    func prepare(_ running: RunningMigration) {
        running.note("preparing")
        runNextPreparation(
            hooks(at: .prepare, for: running.machine.request)[...], chosen: nil, of: running)
    }

    private func runNextPreparation(_ hooks: ArraySlice<Hook>, chosen: Endpoint?, of running: RunningMigration) {
        guard let hook = hooks.first else {
            running.note("prepared", chosen.map { "\($0)" })
            advance(running, .prepared(to: chosen))
            return
        }
        start(hook, for: running) { result in
            let reason: String
            switch result {
            case .failed(let failure): reason = failure
            case .succeeded(let answer):
                do throws(UnusableAnswer) {
                    let choice = try self.choice(of: answer, for: running)
                    return self.runNextPreparation(hooks.dropFirst(), chosen: choice ?? chosen, of: running)
                } catch {
                    reason = error.reason
                }
            }
            self.logger.error("prepare hook \(hook.name) failed: \(reason)", metadata: running.metadata)
            self.advance(running, .prepareFailed(reason: "\(hook.name): \(reason)"))
        }
    }

    /// What a prepare hook has chosen; nil when it has said nothing.
    private func choice(of answer: Data, for running: RunningMigration) throws(UnusableAnswer) -> Endpoint? {
        let text = String(decoding: answer, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        if text.isEmpty { return nil }
        let shown = text.split(whereSeparator: \.isNewline).first.map { String($0.prefix(60)) } ?? ""
        guard let object = try? JSONSerialization.jsonObject(with: answer) as? [String: Any],
            object.keys.allSatisfy({ $0 == "to" })
        else {
            throw UnusableAnswer("its answer is neither empty nor {\"to\": \"ADDRESS:PORT\"} but \"\(shown)\"")
        }
        guard let value = object["to"] else { return nil }
        let request = running.machine.request
        guard request.to != nil else {
            throw UnusableAnswer("it has chosen a host, but the session is on its way home")
        }
        guard let name = value as? String, let host = host(named: name, port: request.to?.port),
            host.address.isUnicast, host.address.family == request.session.home.address.family,
            host != request.session.home
        else {
            throw UnusableAnswer("it has chosen \"\(value)\", which is not a host for this session")
        }
        if let refusal = policy.refusal(of: request.session, to: host, by: nil) {
            throw UnusableAnswer("it has chosen \(host), which the policy refuses: \(refusal)".droppingPeriod)
        }
        if request.sourcePort != nil, host != request.to {
            throw UnusableAnswer("it has chosen \(host), but the controller has stated the translation")
        }
        if let obstacle = otherHome(of: request, at: host) { throw UnusableAnswer("\(obstacle)".droppingPeriod) }
        return host
    }

    private func host(named name: String, port: UInt16?) -> Endpoint? {
        if let endpoint = Endpoint(name), endpoint.port != 0 { return endpoint }
        guard let address = IPAddress(name), let port else { return nil }
        return Endpoint(address: address, port: port)
    }

    /// Runs the hooks of a point that change nothing about the migration any more.
    func runHooks(at point: Hook.Point, of running: RunningMigration) {
        for hook in hooks(at: point, for: running.machine.request) {
            start(hook, for: running) { result in
                guard case .failed(let reason) = result else { return }
                self.logger.error("\(point.rawValue) hook \(hook.name) failed: \(reason)", metadata: running.metadata)
                running.note("hook failed", "\(point.rawValue), \(hook.name): \(reason)")
            }
        }
    }

    /// Ends the preparation of a migration that has an outcome.
    func endPreparation(of running: RunningMigration) {
        for id in hookQueue.ids(of: running.machine.id, at: .prepare) { hookQueue.remove(id)?.cancel() }
        startHooks()
    }

    /// Ends every hook.
    func stopHooks() {
        for id in hookQueue.jobs.keys { hookQueue.remove(id)?.cancel() }
    }

    private func start(_ hook: Hook, for running: RunningMigration, completion: @escaping (HookResult) -> Void) {
        hookQueue.add(HookQueue.Job(hook, migration: running.machine.id, completion: completion))
        startHooks()
    }

    private func startHooks() {
        while let (id, job) = hookQueue.next() {
            guard let running = migrations[job.migration] else {
                _ = hookQueue.remove(id)
                continue
            }
            job.isRunning = true
            let document = documentForHook(running)
            switch job.hook.action {
            case .program(let words):
                job.program = HookProgram(
                    words, environment: environment(of: job.hook, for: running), input: document,
                    timeout: job.hook.timeout, loop: loop
                ) { self.hookEnded(id, $0) }
            case .post(let delivery):
                job.request = Task { await self.post(document, to: delivery, for: id) }
            }
        }
    }

    private func post(_ document: Data, to delivery: Delivery, for id: UInt64) async {
        let result: HookResult
        do {
            let (status, body) = try await delivery.post(document)
            if (200..<300).contains(status) {
                result = .succeeded(body)
            } else {
                let text = String(decoding: body.prefix(4096), as: UTF8.self)
                let line = text.split(whereSeparator: \.isNewline).first.map { ": \($0.prefix(200))" } ?? ""
                result = .failed(reason: "it answered with status \(status)\(line)".droppingPeriod)
            }
        } catch {
            result = .failed(reason: delivery.clause(about: error))
        }
        hookEnded(id, result)
    }

    private func hookEnded(_ id: UInt64, _ result: HookResult) {
        guard let job = hookQueue.remove(id) else { return }
        job.completion(result)
        startHooks()
    }

    /// The migration's report, as the control interface gives it.
    private func documentForHook(_ running: RunningMigration) -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return (try? encoder.encode(report(running))) ?? Data("{}".utf8)
    }

    private func environment(of hook: Hook, for running: RunningMigration) -> [String: String] {
        let report = report(running)
        var environment = [
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
            "NFQMIGD_HOOK": hook.point.rawValue, "NFQMIGD_MIGRATION": "\(report.id)", "NFQMIGD_CLIENT": report.client,
            "NFQMIGD_HOME": report.home, "NFQMIGD_FROM": report.from, "NFQMIGD_TO": report.to,
        ]
        environment["NFQMIGD_SERVICE"] = policy.service(of: running.machine.request.session)?.name
        environment["NFQMIGD_OUTCOME"] = report.outcome
        environment["NFQMIGD_REASON"] = report.reason
        return environment
    }
}

/// What a prepare hook has said cannot be used.
private struct UnusableAnswer: Error {
    /// A clause without an end.
    var reason: String
    init(_ reason: String) { self.reason = reason }
}

extension String {
    /// Without the end of the sentence, so that it can be a part of another one.
    var droppingPeriod: String {
        var text = self[...]
        while text.hasSuffix(".") { text = text.dropLast() }
        return String(text)
    }
}
