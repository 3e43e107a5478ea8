// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import ControlInterface
internal import Foundation

/// A list that comes in pages.
protocol PagedList: Codable {
    /// What `after` of the next page is; nil on the last one.
    var next: String? { get set }
    mutating func append(_ page: Self)
}

extension ConnectionList: PagedList {
    mutating func append(_ page: Self) { connections += page.connections }
}

extension SessionList: PagedList {
    mutating func append(_ page: Self) { sessions += page.sessions }
}

extension MigrationList: PagedList {
    mutating func append(_ page: Self) { migrations += page.migrations }
}

extension Client {
    /// All pages of a list.
    func list<List: PagedList>(_ path: String, _ filter: [String: String?] = [:]) async throws -> List {
        var query = filter.compactMapValues { $0 }
        var list: List = try await get(path, query: query)
        while let after = list.next {
            query["after"] = after
            let page: List = try await get(path, query: query)
            list.append(page)
            list.next = page.next
        }
        return list
    }
}

/// Which items of a list are wanted.
struct FilterOptions: ParsableArguments {
    @Option(help: "Only those of this client: ADDRESS or ADDRESS:PORT.")
    var client: String?

    @Option(help: "Only those of this home: ADDRESS or ADDRESS:PORT.")
    var home: String?

    @Option(help: "Only those that this host serves: ADDRESS or ADDRESS:PORT.")
    var host: String?

    var query: [String: String?] { ["client": client, "home": home, "host": host] }
}

struct Connections: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List the TCP connections that cross the gateway.")
    @OptionGroup var options: CommonOptions
    @OptionGroup var filter: FilterOptions

    @Option(help: "Only those in this state, such as established.")
    var state: String?

    func run() async throws {
        let query = filter.query.merging(["state": state]) { $1 }
        let list: ConnectionList = try await options.client.list("/v1/connections", query)
        if options.json { return try options.printJSON(list) }
        printTable(
            ["CLIENT", "HOME", "HOST", "STATE"],
            list.connections.map { [$0.client, $0.home, $0.host == $0.home ? "home" : $0.host, $0.state] })
    }
}

struct Sessions: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the sessions that are bound, in migration, or under guard.")
    @OptionGroup var options: CommonOptions
    @OptionGroup var filter: FilterOptions

    func run() async throws {
        let list: SessionList = try await options.client.list("/v1/sessions", filter.query)
        if options.json { return try options.printJSON(list) }
        printTable(SessionList.header, list.rows)
    }
}

struct Migrations: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the migrations: the running ones, and the last thousand that have ended.")
    @OptionGroup var options: CommonOptions

    @Option(help: "Only those of this client: ADDRESS or ADDRESS:PORT.")
    var client: String?

    @Option(help: "Only those of this home: ADDRESS or ADDRESS:PORT.")
    var home: String?

    @Option(help: "Only those in this state: running, proven, unproven, failed or superseded.")
    var state: String?

    func run() async throws {
        let list: MigrationList = try await options.client.list(
            "/v1/migrations", ["client": client, "home": home, "state": state])
        if options.json { return try options.printJSON(list) }
        printTable(
            ["ID", "CLIENT", "HOME", "FROM", "TO", "STATE"],
            list.migrations.map { ["\($0.id)", $0.client, $0.home, $0.from, $0.to, $0.outcome ?? "running"] })
    }
}

struct Counters: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show what each queue has carried.")
    @OptionGroup var options: CommonOptions

    func run() async throws {
        let list: CounterList = try await options.client.get("/v1/counters")
        if options.json { return try options.printJSON(list) }
        printTable(
            ["QUEUE", "PACKETS", "OCTETS", "ACCEPTED", "REWRITTEN", "DROPPED", "OVERRUNS"],
            list.queues.map {
                [
                    "\($0.queue)", "\($0.packets)", "\($0.octets)", "\($0.accepted)", "\($0.rewritten)",
                    "\($0.dropped)", "\($0.overruns)",
                ]
            })
        emit("learnt replies: \(list.replies.learnt), with room for \(list.replies.size) of each family\n")
    }
}

struct Explain: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show which binding, elements and conntrack entries packets of a client to a home would meet now.")
    @OptionGroup var options: CommonOptions

    @Argument(help: "CLIENT,HOME: such as 192.0.2.9:49152,198.51.100.1:80; without the client's port, any.")
    var pair: String

    func run() async throws {
        let parts = pair.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 2 else {
            throw ValidationError("Write the client and the home with a comma between: 192.0.2.9,198.51.100.1:80.")
        }
        let explanation: Explanation = try await options.client.get(
            "/v1/explain", query: ["client": parts[0], "home": parts[1]])
        if options.json { return try options.printJSON(explanation) }
        var text = "packets of \(explanation.client) to \(explanation.home)\n"
        if let session = explanation.session {
            text += "session        \(session.client) of \(session.home), scope \(session.scope), on \(session.host)"
            text += session.migration.map { ", migration \($0)\n" } ?? "\n"
        } else {
            text += "session        none: home serves it\n"
        }
        text += "a SYN          \(explanation.newConnection)\n"
        text += "other segments \(explanation.existingConnection)\n"
        text += "mark           \(explanation.mark.map { $0 + ", in our chains only" } ?? "left as it is")\n"
        for element in explanation.elements { text += "element        \(element)\n" }
        for entry in explanation.conntrack {
            text += "conntrack      \(entry.state) \(entry.original), answered \(entry.reply), mark \(entry.mark)\n"
        }
        emit(text)
    }
}
