// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import ControlInterface
internal import Foundation

struct DrainCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drain",
        abstract: "Move many sessions away from a host.",
        discussion: """
            Sessions that HOST serves now go to the hosts named with --to, in shares by weight: \
            "nfqmigctl drain 192.0.2.1 --to 192.0.2.2=3 --to 192.0.2.3=1". "nfqmigctl drain 192.0.2.2 --to home" sends \
            home what that host serves. With --service, the sessions of one [[service]] of the configuration move: those \
            that HOST serves or, without HOST, all that are not on a to-host yet.
            Exit codes: 0 every session moved and every reset proven; 4 moved, but a reset is unproven; 1 a session \
            stayed where it was, or the drain failed or was cancelled.
            """)
    @OptionGroup var options: CommonOptions

    @Argument(help: "The host to be drained: ADDRESS[:PORT]. Not needed with --service.")
    var host: String?

    @Option(help: "Only sessions of this [[service]] of the configuration.")
    var service: String?

    @Option(help: "A to-host and its weight: ADDRESS[:PORT][=WEIGHT], or home. Without a port, each home's is kept.")
    var to: [String]

    @Option(help: "Only clients of this prefix: 192.0.2.0/24, 2001:db8::/32, or an address.")
    var client: String?

    @Option(help: "Only the sessions in this file (- for standard input): a line \"CLIENT[:PORT] HOME:PORT\" for each.")
    var list: String?

    @Option(help: "No more sessions than this.")
    var atMost: Int?

    @Option(help: "oldest, newest or busiest first.")
    var order: String?

    @Option(help: "Migrations that may begin in a second; without it, as many as --in-flight allows.")
    var rate: Double?

    @Option(help: "Migrations that may be under way at once; without it, 128.")
    var inFlight: Int?

    @Option(help: "The share that must succeed before the rest goes, as 5% or 0.05; it goes back if it does not.")
    var canary: String?

    @Option(help: "Seconds that the canary's new connections must stay established; without it, 2.")
    var settle: Double?

    @Flag(help: "Leave the clients alone until they speak.")
    var passive = false

    @Option(help: "connection or client, for sessions that are not bound yet; without it, connection.")
    var scope: String?

    @Option(help: "Who carries the packets afterwards: kernel or queue; without it, what the daemon is configured for.")
    var datapath: String?

    @Flag(help: "Only say which sessions would go where.")
    var dryRun = false

    @Flag(inversion: .prefixedNo, help: "Wait for the outcome, show the progress, and end with its exit code.")
    var wait = true

    func validate() throws {
        if host == nil, service == nil {
            throw ValidationError("What is to be moved? Name the HOST to be drained, --service, or both.")
        }
    }

    func run() async throws {
        var order = DrainOrder(from: host, service: service, to: try to.map(Self.host))
        order.client = client
        order.atMost = atMost
        order.order = self.order
        order.rate = rate
        order.inFlight = inFlight
        order.canary = try canary.map(Self.share)
        order.settle = settle
        order.passive = passive
        order.scope = scope
        order.datapath = datapath
        order.dryRun = dryRun
        order.sessions = try list.map(Self.sessions)
        var report: DrainReport = try await options.client.post("/v1/drains", order)
        if dryRun || !wait {
            if options.json { return try options.printJSON(report) }
            return dryRun ? tellSelection(report) : print("drain \(report.id): \(report.total) sessions")
        }
        report = try await follow(report)
        if options.json { try options.printJSON(report) } else { tellDrain(report) }
        if let reason = report.reason { FileHandle.standardError.write(Data("nfqmigctl: \(reason)\n".utf8)) }
        throw ArgumentParser.ExitCode(report.exitCode ?? ControlInterface.ExitCode.failed.rawValue)
    }

    private func follow(_ first: DrainReport) async throws -> DrainReport {
        let bar = ProgressBar(isQuiet: options.json)
        var report = first
        var attempts = 0
        bar.show(report)
        while report.outcome == nil {
            do {
                report = try await options.client.get(
                    "/v1/drains/\(report.id)", query: ["wait": bar.isTerminal ? "0.2" : "1"])
                attempts = 0
                bar.show(report)
            } catch let error where attempts < 30 && Self.isRestarting(error) {
                // A daemon that starts anew is there again soon, and goes on with the drain.
                attempts += 1
                try await Task.sleep(for: .seconds(1))
            }
        }
        bar.end()
        return report
    }

    private static func isRestarting(_ error: any Error) -> Bool {
        error is Interrupted || (error as? Unreachable)?.reason == .nobody
    }

    private func tellSelection(_ report: DrainReport) {
        printTable(["CLIENT", "HOME", "TO"], (report.sessions ?? []).map { [$0.client, $0.home, $0.to ?? "-"] })
        print("\(report.total) sessions; nothing has been changed")
    }

    private static func host(_ text: String) throws -> DrainHost {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2 else { return DrainHost(host: text) }
        guard let weight = UInt32(parts[1]) else {
            throw ValidationError("\"\(parts[1])\" is not a weight: write --to 192.0.2.2=3.")
        }
        return DrainHost(host: String(parts[0]), weight: weight)
    }

    private static func share(_ text: String) throws -> Double {
        let number = text.hasSuffix("%") ? Double(text.dropLast()).map { $0 / 100 } : Double(text)
        guard let number else { throw ValidationError("\"\(text)\" is not a share: write --canary 5%.") }
        return number
    }

    private static func sessions(_ path: String) throws -> [DrainSession] {
        let text: String
        do {
            let data =
                path == "-"
                ? FileHandle.standardInput.readDataToEndOfFile() : try Data(contentsOf: URL(filePath: path))
            text = String(decoding: data, as: UTF8.self)
        } catch {
            throw ValidationError("The list \(path) cannot be read: name a readable file for --list.")
        }
        return try text.split(separator: "\n").compactMap { line in
            let words = line.split(whereSeparator: \.isWhitespace)
            if words.isEmpty || line.hasPrefix("#") { return nil }
            guard words.count == 2 else {
                throw ValidationError("\"\(line)\" is not a session: write CLIENT[:PORT] and HOME:PORT in each line.")
            }
            return DrainSession(client: String(words[0]), home: String(words[1]))
        }
    }
}

struct Drains: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List the drains, running and ended.")
    @OptionGroup var options: CommonOptions

    func run() async throws {
        let list: DrainList = try await options.client.get("/v1/drains")
        if options.json { return try options.printJSON(list) }
        printTable(
            ["DRAIN", "OF", "TO", "STATE", "TOTAL", "MOVED", "GONE", "FAILED", "WAITING"],
            list.drains.map { report in
                let state = report.outcome ?? (report.isPaused ? "paused" : report.state)
                return [
                    "\(report.id)", report.what, report.shares, state, "\(report.total)", "\(report.moved)",
                    "\(report.gone)", "\(report.failed)", "\(report.waiting)",
                ]
            })
    }
}

/// What can be said to a drain that runs.
private func tell(_ id: UInt64, _ what: String, _ options: CommonOptions) async throws {
    struct Nothing: Encodable {}
    let report: DrainReport = try await options.client.post("/v1/drains/\(id)/\(what)", Nothing())
    if options.json { return try options.printJSON(report) }
    tellDrain(report)
}

struct Pause: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Begin no further migration of a drain; those under way go on.")
    @OptionGroup var options: CommonOptions
    @Argument(help: "The drain's number.") var id: UInt64
    func run() async throws { try await tell(id, "pause", options) }
}

struct Resume: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Go on with a drain that was paused.")
    @OptionGroup var options: CommonOptions
    @Argument(help: "The drain's number.") var id: UInt64
    func run() async throws { try await tell(id, "resume", options) }
}

struct Cancel: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "End a drain after the migrations under way; what has moved stays where it is.")
    @OptionGroup var options: CommonOptions
    @Argument(help: "The drain's number.") var id: UInt64
    func run() async throws { try await tell(id, "cancel", options) }
}

extension DrainReport {
    fileprivate var shares: String {
        to.map { $0.weight ?? 1 == 1 ? $0.host : "\($0.host)=\($0.weight ?? 1)" }.joined(separator: " ")
    }

    /// Whose sessions, as the order named them.
    fileprivate var what: String { [from, service].compactMap { $0 }.joined(separator: "/") }

    /// How many have had their turn and an outcome.
    fileprivate var done: Int { moved + gone + failed }
}

private func tellDrain(_ report: DrainReport) {
    print("drain \(report.id): \(report.what) → \(report.shares): \(report.outcome ?? report.state)")
    print(
        "\(report.moved) of \(report.total) moved (\(report.unproven) unproven), \(report.gone) gone, \(report.failed) failed, "
            + "\(report.returned) returned, \(report.waiting) waiting")
    for host in report.to { print("  \(host.host): \(host.sessions ?? 0) sessions") }
    for failure in report.failures { print("  \(failure.sessions) × \(failure.reason)") }
}

/// A bar on a terminal, a line a second otherwise; on standard error.
private struct ProgressBar {
    let isTerminal = isatty(STDERR_FILENO) == 1
    let isQuiet: Bool

    func show(_ report: DrainReport) {
        guard !isQuiet else { return }
        let state = report.isPaused ? "paused" : report.state
        let counts = "\(report.done)/\(report.total)  \(state), \(report.inFlight) in flight, \(report.failed) failed"
        guard isTerminal else { return write(counts + "\n") }
        let width = 40
        let full = report.total == 0 ? width : width * report.done / report.total
        let bar = String(repeating: "#", count: full) + String(repeating: ".", count: width - full)
        write("\r\u{1B}[K[\(bar)] \(counts)")
    }

    func end() { if isTerminal, !isQuiet { write("\n") } }

    private func write(_ text: String) { FileHandle.standardError.write(Data(text.utf8)) }
}
