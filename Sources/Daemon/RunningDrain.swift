// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Migration
internal import Wire

/// A drain with what belongs to it outside its machine. Confined to the coordinator.
final class RunningDrain {
    let id: UInt64
    let order: DrainOrder
    /// Who asked for it.
    let caller: Caller
    let selection: DrainSelection
    var members: DrainMembers
    var machine: Drain
    let requestedAt: Double
    var finishedAt: Double?
    var timer: UInt64?
    var progressTimer: UInt64?
    var waiters: [Waiter] = []
    var checks: [HostCheck] = []
    /// What the ports of a to-host have answered, while some have not.
    var answers: [Int: (open: Int, refusal: String?)] = [:]
    /// To-hosts' endpoints that accepted a connection when they were last asked.
    var listening: Set<Endpoint> = []
    /// The members' migrations, by number: which member, and whether on its way back.
    var migrations: [UInt64: (member: Int, isReturning: Bool)] = [:]
    /// Each member's latest migration.
    var latest: [Int: UInt64] = [:]
    /// What the journal says of members that have had their turn, of those that had it in an earlier process, and of the whole.
    var turns: [Int: JournaledTurn] = [:]
    var earlier: Set<Int> = []
    var journaled = DrainProgress()
    /// Conntrack's connections by client, listed for a group of sessions that begin together.
    var dump: [IPAddress: [ConnectionEntry]]?
    /// What has happened and the machine has not been told.
    var news: [Drain.Event] = []
    /// What the last event of progress said.
    var told = Drain.Counts()

    init(
        id: UInt64, order: DrainOrder, caller: Caller, selection: DrainSelection, members: [DrainMembers.Member],
        requestedAt: Double = EventLoop.wallClock
    ) {
        self.id = id
        self.caller = caller
        self.order = order
        self.selection = selection
        self.members = DrainMembers(members)
        self.requestedAt = requestedAt
        var plan = selection.plan
        plan.members = members.count
        machine = Drain(plan)
    }

    func resumeWaiters(_ loop: EventLoop) {
        for waiter in waiters {
            if let timer = waiter.timer { loop.cancel(timer) }
            waiter.resume()
        }
        waiters = []
    }

    /// The drain as it is told to others.
    var report: DrainReport {
        let counts = machine.counts
        let to = zip(selection.hosts, machine.spread.counts).map { each, count in
            DrainHost(host: each.host.map { "\($0)" } ?? "home", weight: each.weight, sessions: count)
        }
        let state = machine.state == .rest ? "moving" : machine.state.rawValue
        var report = DrainReport(
            id: id, from: order.from, service: order.service, to: to, state: state, total: members.count,
            requestedAt: requestedAt)
        report.isPaused = machine.isPaused
        report.waiting = machine.waiting
        report.inFlight = counts.inFlight
        report.moved = counts.moved
        report.gone = counts.gone
        report.failed = counts.failed
        report.unproven = counts.unproven
        report.returned = counts.returned
        report.canary = machine.canaries
        report.rate = machine.plan.rate
        report.failures = machine.reasons.map { DrainFailure(reason: $0.key, sessions: $0.value) }
            .sorted { ($1.sessions, $0.reason) < ($0.sessions, $1.reason) }
        report.finishedAt = finishedAt
        switch machine.outcome {
        case nil: break
        case .completed:
            report.outcome = "completed"
            let code: ExitCode = counts.failed > 0 ? .failed : counts.unproven > 0 ? .unproven : .done
            report.exitCode = code.rawValue
        case .cancelled:
            report.outcome = "cancelled"
            report.exitCode = ExitCode.failed.rawValue
        case .failed(let reason):
            report.outcome = "failed"
            report.reason = reason
            report.exitCode = ExitCode.failed.rawValue
        }
        return report
    }
}

extension DrainOrder {
    /// Which sessions are meant, in words.
    var what: String {
        [from.map { "of \($0)" }, service.map { "of service \"\($0)\"" }].compactMap { $0 }.joined(separator: " ")
    }
}
