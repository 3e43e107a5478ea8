// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import ControlInterface
internal import Foundation

/// How long a migration stands.
struct LifetimeOptions: ParsableArguments {
    @Option(
        name: .customLong("for"),
        help: ArgumentHelp("End the migration by itself after this time: 90s, 10m, 2h, 1d.", valueName: "time"))
    var duration: Duration?

    @Option(help: ArgumentHelp("Where the session goes then: ADDRESS[:PORT]; home without it.", valueName: "host"))
    var then: String?

    @Option(
        help: ArgumentHelp("Go home after this time unless \"nfqmigctl confirm\" says otherwise.", valueName: "time"))
    var confirmWithin: Duration?

    /// A time as people write it.
    struct Duration: ExpressibleByArgument {
        var seconds: Double

        /// `30`, `30s`, `10m`, `2h` or `1d`.
        init?(argument: String) {
            let units: [Character: Double] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
            let unit = argument.last.flatMap { units[$0] }
            let digits = unit == nil ? argument[...] : argument.dropLast()
            guard digits.allSatisfy({ $0.isASCII && ($0.isNumber || $0 == ".") }), let number = Double(digits) else {
                return nil
            }
            seconds = number * (unit ?? 1)
        }
    }
}

struct Confirm: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Let a migration stay that was made with --confirm-within.")
    @OptionGroup var options: CommonOptions

    @Argument(help: "The migration's number.")
    var id: UInt64

    func run() async throws {
        let answer: MigrationConfirmation = try await options.client.post(
            "/v1/migrations/\(id)/confirm", [String: String]())
        if options.json { return try options.printJSON(answer) }
        print("migration \(id) is confirmed: \(answer.client) of \(answer.home)")
    }
}
