// SPDX-License-Identifier: GPL-3.0-or-later

internal import ArgumentParser
internal import Daemon
internal import Foundation
internal import Logging

internal import let ControlInterface.productVersion

@main
struct NFQMigD: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "nfqmigd",
        abstract: "Moves live TCP sessions from one server to another, from a Linux gateway.",
        version: productVersion,
        subcommands: [Run.self, Ruleset.self, Check.self, Remove.self])

    func run() throws {
        FileHandle.standardError.write(Data((Self.helpMessage() + "\n").utf8))
        throw ExitCode(2)
    }
}

/// Where the settings come from: a file, and what the command line says differently.
struct Settings: ParsableArguments {
    @Option(help: "The configuration file.")
    var config: String?

    @Option(help: "The control interface's UNIX socket.")
    var socket: String?

    @Option(help: "Where the journal is kept.")
    var stateDirectory: String?

    @Option(help: "Who carries bound connections unless a request says otherwise: kernel or queue.")
    var datapath: String?

    func configuration() throws -> Configuration {
        let standard = "/etc/nfqmigd/nfqmigd.toml"
        var configuration: Configuration
        if let config {
            configuration = try Configuration(file: config)
        } else if FileManager.default.fileExists(atPath: standard) {
            configuration = try Configuration(file: standard)
        } else {
            configuration = Configuration()
        }
        if let socket { configuration.socket = socket }
        if let stateDirectory { configuration.stateDirectory = stateDirectory }
        if let datapath {
            guard configuration.setDatapath(named: datapath) else {
                throw ValidationError("\"\(datapath)\" is not a datapath: use kernel or queue.")
            }
        }
        return configuration
    }
}

/// Ends the program with a sentence on standard error.
func end(_ error: any Error) -> any Error {
    let status: Int32 =
        switch error {
        case is MissingCapability: 77
        case is ConfigurationError: 78
        default: 71
        }
    FileHandle.standardError.write(Data("nfqmigd: \(error)\n".utf8))
    return ExitCode(status)
}

struct Run: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Run in the foreground.")

    @OptionGroup var settings: Settings

    func run() async throws {
        LoggingSystem.bootstrap { label in StreamLogHandler.standardError(label: label) }
        do {
            let settings = settings
            try await Daemon.run(try settings.configuration(), logger: Logger(label: "nfqmigd")) {
                try settings.configuration()
            }
        } catch let error as ValidationError {
            throw error
        } catch {
            throw end(error)
        }
    }
}

struct Ruleset: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Print the nftables table that the daemon keeps, as nft text; nothing is changed.")

    @OptionGroup var settings: Settings

    func run() throws {
        do {
            print(Daemon.rulesetText(try settings.configuration()), terminator: "")
        } catch let error as ValidationError {
            throw error
        } catch {
            throw end(error)
        }
    }
}

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Check the configuration and what stands in the way on this gateway; nothing is changed.")

    @OptionGroup var settings: Settings

    func run() throws {
        do {
            let findings = Daemon.check(try settings.configuration())
            for finding in findings { print(finding) }
            if findings.contains(where: \.isFatal) { throw ExitCode(1) }
        } catch let error as ExitCode {
            throw error
        } catch let error as ValidationError {
            throw error
        } catch {
            throw end(error)
        }
    }
}

struct Remove: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Remove the table of a daemon that has been stopped. Sessions that have moved are cut.")

    @OptionGroup var settings: Settings

    func run() throws {
        do {
            let removed = try Daemon.removeTable(try settings.configuration())
            print(removed ? "The table inet nfqmigd is removed." : "There is no table inet nfqmigd.")
        } catch let error as ValidationError {
            throw error
        } catch {
            throw end(error)
        }
    }
}
