// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import ControlInterface
internal import Foundation
internal import Synchronization

struct Events: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Follow what happens: a line for each step, until interrupted.",
        discussion: "Resumes by itself when the connection breaks. With --json, one document a line.")
    @OptionGroup var options: CommonOptions

    @Option(help: "Begin behind the event with this id; 0 begins with the oldest that is kept.")
    var after: UInt64?

    @Option(help: "Only those of this migration.")
    var migration: UInt64?

    @Option(help: "Only those of this drain.")
    var drain: UInt64?

    func run() async throws {
        let query = ["migration": migration, "drain": drain].compactMapValues { $0.map(String.init) }
        try await options.client.events(after: after, query: query) { event in
            emit(options.json ? try event.jsonLine : event.line)
            return true
        }
    }
}

struct Wait: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Wait for a migration's outcome and end with its exit code.")
    @OptionGroup var options: CommonOptions

    @Option(help: "Seconds to wait, up to 86400.")
    var timeout: Double = 86_400

    @Argument(help: "The migration's number.")
    var id: UInt64

    func validate() throws {
        guard timeout > 0, timeout <= 86_400 else { throw ValidationError("--timeout takes seconds, up to 86400.") }
    }

    func run() async throws {
        let report: MigrationReport = try await options.client.get(
            "/v1/migrations/\(id)", query: ["wait": "\(timeout)"])
        try tell(report, options, withTimeline: false)
        throw ArgumentParser.ExitCode(report.waitedExitCode)
    }
}

struct Watch: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show sessions and running migrations as they change, until interrupted.",
        discussion: "Where the output is no terminal, a line for each step, as events does.")
    @OptionGroup var options: CommonOptions

    func run() async throws {
        guard isOnTerminal, !options.json else {
            return try await options.client.events(after: nil) { event in
                emit(options.json ? try event.jsonLine : event.line)
                return true
            }
        }
        let picture = Picture()
        let client = options.client
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask {
                // Guards end without an event: now and then it is drawn anyway.
                var idle = 0
                while true {
                    if picture.refresh() || idle >= 20 {
                        idle = 0
                        emit(try await Self.screen(client))
                    }
                    idle += 1
                    try await Task.sleep(for: .milliseconds(250))
                }
            }
            group.addTask {
                try await client.events(after: nil) { _ in
                    picture.invalidate()
                    return true
                }
            }
            // The first one that cannot go on ends the other.
            try await group.next()
            group.cancelAll()
        }
    }

    /// The whole picture, from the terminal's upper left corner.
    private static func screen(_ client: Client) async throws -> String {
        let sessions: SessionList = try await client.list("/v1/sessions")
        let running: MigrationList = try await client.list("/v1/migrations", ["state": "running"])
        let clock = Date.now.formatted(date: .omitted, time: .standard)
        var text = "\(sessions.sessions.count) sessions, \(running.migrations.count) migrations under way, \(clock)\n\n"
        text += table(SessionList.header, sessions.rows)
        if !running.migrations.isEmpty {
            text +=
                "\n"
                + table(
                    ["MIGRATION", "CLIENT", "HOME", "FROM", "TO", "STEP"],
                    running.migrations.map {
                        ["\($0.id)", $0.client, $0.home, $0.from, $0.to, $0.timeline.last?.step ?? "-"]
                    })
        }
        // Each line clears what was behind it, the last one what was below.
        return "\u{1b}[H" + text.replacingOccurrences(of: "\n", with: "\u{1b}[K\n") + "\u{1b}[J"
    }
}

/// Whether what is on the screen is out of date.
private final class Picture: Sendable {
    private let isStale = Mutex(true)

    func invalidate() { isStale.withLock { $0 = true } }

    /// Whether it was; it is to be drawn then.
    func refresh() -> Bool {
        isStale.withLock { stale in
            defer { stale = false }
            return stale
        }
    }
}
