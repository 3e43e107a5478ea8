// SPDX-License-Identifier: GPL-3.0-or-later

import CLinuxShims
import Foundation
import NFQueueBridge
import Ruleset
import Synchronization
import Wire

/// Network namespaces of a test's own, with the table in them.
enum NetfilterTableLab {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    static let options = RulesetOptions(mark: 0x6e60_0000, firstQueue: 0, queueCount: 2)

    /// Whether a namespace can be made and nft can list its (empty) ruleset; found out once.
    static let isAvailable = (try? inNamespace { try shell("nft list ruleset") }) != nil
    static let requirement = "needs root, nf_tables and the program nft"

    /// Whether the kernel has nf_tables' own queue expression; found out once.
    static let hasNativeQueue =
        (try? inNamespace { try nft("add table inet t; add chain inet t c; add rule inet t c queue num 0") }) != nil

    /// Runs `body` on a thread of its own in a new network namespace.
    static func inNamespace<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result {
        let outcome = Outcome<Result>()
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            let result = Swift.Result {
                guard nfqmig_unshare_network() == 0 else { throw Failure(description: "cannot make a namespace") }
                return try body()
            }
            outcome.value.withLock { $0 = result }
            done.signal()
        }
        done.wait()
        guard let result = outcome.value.withLock({ $0 }) else { throw Failure(description: "no result") }
        return try result.get()
    }

    private final class Outcome<Result: Sendable>: Sendable {
        let value = Mutex<Swift.Result<Result, any Error>?>(nil)
    }

    /// Runs a command in the calling thread's network namespace (a child inherits it) and returns what it prints.
    /// Not by Foundation's Process: its waiting for the end hangs on a thread without a run loop.
    @discardableResult
    static func shell(_ command: String, input: String = "", environment: String? = nil) throws -> String {
        let base = FileManager.default.temporaryDirectory.appendingPathComponent("nfqmig-\(UUID().uuidString)").path
        let (given, printed, complaint) = (base + ".in", base + ".out", base + ".err")
        defer { for path in [given, printed, complaint] { try? FileManager.default.removeItem(atPath: path) } }
        try input.write(toFile: given, atomically: false, encoding: .utf8)
        let script = "exec <\(given) >\(printed) 2>\(complaint); \(command)"
        let texts: [String] = ["sh", "-c", script, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        let words = (texts + [environment ?? "LC_ALL=C"]).map { strdup($0) }
        defer { for word in words { free(word) } }
        var process: pid_t = 0
        guard posix_spawn(&process, "/bin/sh", nil, nil, words.prefix(3) + [nil], words.suffix(2) + [nil]) == 0 else {
            throw Failure(description: "cannot run sh")
        }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
        guard status == 0 else {
            let errors = try String(contentsOfFile: complaint, encoding: .utf8)
            throw Failure(description: "\(command): \(errors)")
        }
        return try String(contentsOfFile: printed, encoding: .utf8)
    }

    @discardableResult
    static func nft(_ text: String) throws -> String { try shell("nft -f -", input: text) }

    /// Our table as nft prints it.
    static func listing() throws -> String { try shell("nft list table inet nfqmigd") }

    /// The rules of one of our chains, as nft prints them; none where there is no such chain.
    static func rules(of chain: ChainName) throws -> [Substring] { rules(of: chain, in: try listing()) }

    /// The names of the maps that the rules of our nat chains look into.
    static func mapsOfNAT() throws -> Set<String> {
        let chains: [ChainName] = [.preroutingNAT, .postroutingNAT]
        return Set(try chains.flatMap(rules).compactMap { $0.split(separator: "@").last.map(String.init) })
    }

    /// The rules of a chain in the text of a table.
    static func rules(of chain: ChainName, in text: String) -> [Substring] {
        text.split(separator: "\n").drop { $0 != "\tchain \(chain.rawValue) {" }.dropFirst().prefix { $0 != "\t}" }
            .map { $0.drop { $0 == "\t" } }.filter { !$0.isEmpty && !$0.hasPrefix("type ") && !$0.hasPrefix("#") }
    }

    /// The table's text without the one line that not every kernel takes.
    static func withoutQueue(_ text: String) -> String {
        text.split(separator: "\n", omittingEmptySubsequences: false).map { line in
            let words = line.drop { $0 == "\t" }
            return words.hasPrefix("queue ") || words.hasPrefix("xt target") || words.hasPrefix("# xt_NFQUEUE")
                ? "\t\tdrop" : String(line)
        }.joined(separator: "\n")
    }

    /// A listing without the elements of sets that have one.
    static func withoutElements(_ text: String) -> String {
        text.split(separator: "\n", omittingEmptySubsequences: false)
            .filter { !$0.contains("elements = {") }.joined(separator: "\n")
    }

    /// An element for each set at the entrances.
    static func everyEntrance() throws -> [TableElement] {
        let addresses = try ["198.18.2.6:443", "[2001:db8:2::6]:443"].map { try endpoint($0).address }
        return addresses.map { .involved($0) } + addresses.map { .answering($0) }
    }

    static func endpoint(_ text: String) throws -> Endpoint {
        guard let endpoint = Endpoint(text) else { throw Failure(description: "not an endpoint: \(text)") }
        return endpoint
    }

    static func tuple(_ source: String, _ destination: String) throws -> FourTuple {
        FourTuple(source: try endpoint(source), destination: try endpoint(destination))
    }

    /// One element of every kind.
    static func everyKind(client: String, home: String, host: String) throws -> [TableElement] {
        let tuple = try tuple(client, home)
        let (client, home, host) = (tuple.source, tuple.destination, try endpoint(host))
        return [
            .involved(home.address), .divert(tuple), .divertConnection(tuple), .guard(tuple.reversed),
            .divertClient(client: client.address, home: home),
            .divertService(home: home), .service(home: home, host: host),
            .connection(tuple, host: host),
            .source(tuple, as: Endpoint(address: client.address, port: 1023)),
            .client(client.address, home: home, host: host),
            .guarded(tuple), .reply(FourTuple(source: host, destination: client)),
            .answering(host.address), .icmpHome(home.address), .icmpPeer(client.address),
            .endpointAddress(number: 0x3_ffff, host.address),
            .endpointPort(number: 0x3_ffff, host.port, host.address.family),
            .clientPort(number: 0x3_ffff, client.port, client.address.family),
        ]
    }

    static func everyKind() throws -> [TableElement] {
        try everyKind(client: "198.18.1.2:49152", home: "198.18.2.6:443", host: "198.18.2.7:8443")
            + everyKind(client: "[2001:db8:1::2]:49152", home: "[2001:db8:2::6]:443", host: "[2001:db8:2::7]:8443")
    }
}
