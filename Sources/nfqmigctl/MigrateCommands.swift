// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import ControlInterface
internal import Foundation

/// Which session, as `migrate` and `return` name it.
struct SessionOptions: ParsableArguments {
    @Option(
        help:
            "The client: ADDRESS:PORT for one connection, ADDRESS for all its connections to that home, any for everybody."
    )
    var client: String?

    @Option(help: "The home: the address and port that the client believes it talks to.")
    var from: String?

    @Option(help: "The number of a session that is known, in place of --client and --from.")
    var session: UInt64?

    @Option(help: "connection, client or service; without it, --client decides. A service has no --client.")
    var scope: String?

    @Flag(help: "Leave the client alone until it speaks.")
    var passive = false

    func validate() throws {
        if session != nil {
            guard client == nil, from == nil, scope == nil else {
                throw ValidationError("--session says which client, home and scope: leave those out, or --session.")
            }
        } else if from == nil || client == nil && scope != "service" {
            throw ValidationError(
                "A session is named by --client and --from, by --from and --scope service, or by --session.")
        }
    }
}

struct WaitOptions: ParsableArguments {
    @Flag(help: "Wait for the outcome and end with its exit code.")
    var wait = false

    @Option(help: "Seconds to wait.")
    var timeout: Double = 30

    func validate() throws {
        guard timeout > 0, timeout <= 86_400 else { throw ValidationError("--timeout takes seconds, up to 86400.") }
    }
}

struct Migrate: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Move a session to another host, in one step.")
    @OptionGroup var options: CommonOptions
    @OptionGroup var session: SessionOptions
    @OptionGroup var waiting: WaitOptions

    @Option(
        help:
            "The to-host: ADDRESS[:PORT] or ADDRESS:FIRST-LAST, or home. Without a port, the home's is kept; of a range, a port that listens and is free is taken."
    )
    var to: String?

    @Option(
        help: ArgumentHelp(
            "In place of --to, the exact translation of one connection: SOURCE,DESTINATION as the to-host is to see it.",
            valueName: "source,destination"))
    var translation: String?

    @Option(help: "Who carries the packets afterwards: kernel or queue; without it, what the daemon is configured for.")
    var datapath: String?

    @OptionGroup var lifetime: LifetimeOptions

    func validate() throws {
        guard (to == nil) != (translation == nil) else {
            throw ValidationError("Name the to-host: --to or --translation.")
        }
        if let translation, translation.split(separator: ",", omittingEmptySubsequences: true).count != 2 {
            throw ValidationError("--translation takes two endpoints: 192.0.2.9:1023,192.0.2.2:80.")
        }
    }

    func run() async throws {
        var stated: StatedTranslation?
        if let ends = translation?.split(separator: ",") {
            stated = StatedTranslation(source: String(ends[0]), destination: String(ends[1]))
        }
        try await order(to: to, stated, datapath: datapath, lifetime, session, waiting, options)
    }
}

struct Return: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Move a session home.")
    @OptionGroup var options: CommonOptions
    @OptionGroup var session: SessionOptions
    @OptionGroup var waiting: WaitOptions

    func run() async throws {
        try await order(to: "home", nil, datapath: nil, nil, session, waiting, options)
    }
}

struct Show: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show a migration, step by step.")
    @OptionGroup var options: CommonOptions
    @OptionGroup var waiting: WaitOptions

    @Argument(help: "The migration's number.")
    var id: UInt64

    func run() async throws {
        let query = waiting.wait ? ["wait": "\(waiting.timeout)"] : [:]
        let report: MigrationReport = try await options.client.get("/v1/migrations/\(id)", query: query)
        try tell(report, options)
        if waiting.wait { throw ArgumentParser.ExitCode(report.waitedExitCode) }
    }
}

/// Asks for a migration, waits for it if asked to, and ends with its exit code.
private func order(
    to: String?, _ translation: StatedTranslation?, datapath: String?, _ lifetime: LifetimeOptions?,
    _ session: SessionOptions, _ waiting: WaitOptions,
    _ options: CommonOptions
) async throws {
    var order = MigrationOrder(
        session: session.session, client: session.client, from: session.from, to: to, scope: session.scope,
        datapath: datapath, passive: session.passive)
    order.translation = translation
    order.lifetime = lifetime?.duration?.seconds
    order.then = lifetime?.then
    order.confirmWithin = lifetime?.confirmWithin?.seconds
    var report: MigrationReport = try await options.client.post("/v1/migrations", order)
    if waiting.wait, report.outcome == nil {
        report = try await options.client.get("/v1/migrations/\(report.id)", query: ["wait": "\(waiting.timeout)"])
    }
    try tell(report, options)
    if let reason = report.reason { FileHandle.standardError.write(Data("nfqmigctl: \(reason)\n".utf8)) }
    if waiting.wait { throw ArgumentParser.ExitCode(report.waitedExitCode) }
    if let code = report.exitCode { throw ArgumentParser.ExitCode(code) }
}

extension MigrationReport {
    /// What a command that has waited for this migration ends with.
    var waitedExitCode: Int32 { exitCode ?? ControlInterface.ExitCode.timedOut.rawValue }
}

func tell(_ report: MigrationReport, _ options: CommonOptions, withTimeline: Bool = true) throws {
    if options.json { return try options.printJSON(report) }
    let outcome = report.outcome ?? "under way"
    print("migration \(report.id): \(report.client) of \(report.home), \(report.from) → \(report.to): \(outcome)")
    for entry in withTimeline ? report.timeline : [] {
        let time = String(format: "%9.3f ms", entry.at)
        print("\(time)  \(entry.step)\(entry.detail.map { ": " + $0 } ?? "")")
    }
}
