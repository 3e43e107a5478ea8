// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import ControlInterface
internal import Foundation

@main
struct NFQMigCtl {
    /// The parser's own exit code for wrong usage is 64; ours is 2, as every other command's that scripts know.
    static func main() async {
        do {
            var command = try Commands.parseAsRoot(try arranged(Array(CommandLine.arguments.dropFirst())))
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
        } catch let code as ArgumentParser.ExitCode {
            Foundation.exit(code.rawValue)
        } catch let problem as Problem {
            fail(problem.detail, problem.exitCode)
        } catch let error as Interrupted {
            fail("\(error)", ControlInterface.ExitCode.unreachable.rawValue)
        } catch let error as Unreachable {
            fail("\(error)", ControlInterface.ExitCode.unreachable.rawValue)
        } catch {
            let message = Commands.fullMessage(for: error)
            if Commands.exitCode(for: error).isSuccess {
                print(message)
                Foundation.exit(0)
            }
            FileHandle.standardError.write(Data((message + "\n").utf8))
            Foundation.exit(ControlInterface.ExitCode.usage.rawValue)
        }
    }

    /// The parser wants options behind the subcommand; before it they mean the same.
    private static func arranged(_ arguments: [String]) throws -> [String] {
        var leading: ArraySlice<String> = []
        var rest = arguments[...]
        while let option = rest.first, option == "--socket" || option == "--json" || option.hasPrefix("--socket=") {
            let words = option == "--socket" ? 2 : 1
            leading += rest.prefix(words)
            rest = rest.dropFirst(words)
        }
        guard !rest.isEmpty else {
            FileHandle.standardError.write(Data((Commands.helpMessage() + "\n").utf8))
            Foundation.exit(ControlInterface.ExitCode.usage.rawValue)
        }
        // The parser would call it an option.
        for (before, word) in zip(rest, rest.dropFirst())
        where word.wholeMatch(of: /-[0-9]+/) != nil && !before.hasPrefix("--") {
            throw ValidationError("An id is a whole number from 1; \(word) is none.")
        }
        return Array(rest.prefix(1) + leading + rest.dropFirst())
    }

    private static func fail(_ sentence: String, _ code: Int32) -> Never {
        FileHandle.standardError.write(Data("nfqmigctl: \(sentence)\n".utf8))
        Foundation.exit(code)
    }
}

struct Commands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "nfqmigctl",
        abstract: "Speaks to nfqmigd: lists connections and sessions, and moves them.",
        discussion: """
            Endpoints are written 192.0.2.1:80 or [2001:db8::1]:80.
            Exit codes: 0 done and proven; 1 failed, nothing changed; 2 usage; 3 no such connection or session; \
            4 done, but the from-host's reset is unproven; 5 refused by policy; 6 daemon not reachable; \
            7 time-out while waiting.
            """,
        version: productVersion,
        subcommands: [
            Connections.self, Sessions.self, Migrate.self, Return.self, Confirm.self, Show.self, DrainCommand.self,
            Drains.self, Pause.self, Resume.self, Cancel.self, Counters.self, Migrations.self, Wait.self, Watch.self,
            Events.self, Explain.self,
        ])
}

struct CommonOptions: ParsableArguments {
    @Option(help: "The daemon's control socket.")
    var socket = ProcessInfo.processInfo.environment["NFQMIGD_SOCKET"] ?? defaultSocketPath

    @Flag(help: "Print JSON, as the control interface gives it.")
    var json = false

    var client: Client { Client(socket: socket) }

    func printJSON(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }
}
