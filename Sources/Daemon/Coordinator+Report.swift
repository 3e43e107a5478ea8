// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Migration
internal import Wire

extension Coordinator {
    /// A migration as it is told to others.
    func report(_ running: RunningMigration) -> MigrationReport {
        let machine = running.machine
        let key = machine.request.session
        var report = MigrationReport(
            id: machine.id, session: machine.session.id, client: running.requested.clientText, home: "\(key.home)",
            scope: key.scope.rawValue,
            datapath: machine.request.datapath.rawValue, passive: machine.request.passive, from: "\(machine.fromHost)",
            to: machine.request.destinationText, requestedAt: running.requestedAt)
        report.switchedAt = running.switchedAt
        report.finishedAt = running.finishedAt
        report.timeline = running.timeline
        report.endsAt = lifetimes[machine.id]?.endsAt
        report.then = lifetimes[machine.id]?.then.map { "\($0)" }
        report.confirmBy = lifetimes[machine.id]?.confirmBy
        report.reconnected = machine.reconnected.map { "\($0)" }.sorted()
        report.connections = machine.connections.map { connection in
            let server = running.sent[connection.serverSide] ?? (0, 0)
            let client = running.sent[connection.clientSide.reversed] ?? (0, 0)
            return ConnectionReport(
                clientSide: "\(connection.clientSide)", serverSide: "\(connection.serverSide)",
                fromHostReset: machine.serverResult(connection)?.rawValue,
                clientReset: machine.clientResult(connection)?.rawValue,
                challenges: server.challenges + client.challenges, resets: server.resets + client.resets)
        }
        switch machine.outcome {
        case .proven:
            (report.outcome, report.exitCode) = ("proven", ExitCode.done.rawValue)
        case .unproven:
            (report.outcome, report.exitCode) = ("unproven", ExitCode.unproven.rawValue)
        case .superseded:
            (report.outcome, report.exitCode) = ("superseded", ExitCode.unproven.rawValue)
            report.reason =
                "A newer migration of \(key) took over after the switch: its outcome is the one that counts."
        case .failed(let failure):
            if case .superseded = failure { report.outcome = "superseded" } else { report.outcome = "failed" }
            report.reason = failure.description
            report.exitCode = failure.problem.exitCode
        case nil: break
        }
        return report
    }
}
