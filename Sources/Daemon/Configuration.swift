// SPDX-License-Identifier: GPL-3.0-or-later

internal import Foundation
public import Migration
public import Rewriter
internal import Ruleset
internal import TOMLKit

/// What an operator can set, in one TOML file; every key has a default and an unknown key is an error.
public struct Configuration: Hashable, Sendable {
    /// The control interface's UNIX socket.
    public var socket = "/run/nfqmigd/control.sock"
    /// The group that may connect to it, by name or number; nil: the daemon's own.
    public var socketGroup: String?
    /// The socket's file mode.
    public var socketMode: UInt32 = 0o660
    /// Where the journal is kept.
    public var stateDirectory = "/var/lib/nfqmigd"
    /// Who carries bound connections unless a request says otherwise.
    public var datapath = Datapath.kernel
    /// The first NFQUEUE number, and how many queues (and threads) there are.
    public var firstQueue: UInt16 = 0
    public var queues: UInt16 = 2
    /// Packets that may wait in each queue.
    public var queueLength: UInt32 = 4096
    /// Who writes the endpoints into packets of the queue datapath.
    public var treatment = Treatment.mark
    /// The fwmark of our own segments, and the beginning of those by which the kernel knows what to write.
    public var mark: UInt32 = 0x6e60_0000
    /// Whether the to-host is asked for a TCP connection before a migration.
    public var checkHost = true
    /// Milliseconds that the to-host has to accept it.
    public var checkTimeout: UInt32 = 1000
    /// Milliseconds that an endpoint has to answer the reset handshake.
    public var resetTimeout: UInt32 = 3000
    public var lifetimes = MigrationMachine.Lifetimes()
    /// What may be moved. Without a service, nothing.
    public var policy = Policy()
    /// What is to happen at points of a migration, besides the migration.
    package var hooks: [Hook] = []
    /// Who is told of events.
    package var webhooks: [Webhook] = []

    public init() {}

    /// Reads a configuration file.
    public init(file path: String) throws(ConfigurationError) {
        let text: String
        do {
            text = try String(contentsOfFile: path, encoding: .utf8)
        } catch {
            throw ConfigurationError(path: path, reason: "it cannot be read; name a readable file with --config")
        }
        try self.init(toml: text, path: path)
    }

    /// Reads the text of a configuration file; `path` is for error messages.
    public init(toml text: String, path: String) throws(ConfigurationError) {
        self.init()
        let table: TOMLTable
        do {
            table = try TOMLTable(string: text)
        } catch {
            throw ConfigurationError(path: path, reason: "it is not TOML: \(error)")
        }
        for key in table.keys {
            guard let value = table[key] else { continue }
            try set(key, to: value.tomlValue, path: path)
        }
        guard Int(firstQueue) + Int(queues) <= 65_536 else {
            throw ConfigurationError(path: path, reason: "first-queue plus queues passes 65535; lower one of them")
        }
        try checkReferences(path: path)
    }

    /// Chooses a datapath by its name; false when there is none of that name.
    public mutating func setDatapath(named name: String) -> Bool {
        guard let choice = Datapath(rawValue: name) else { return false }
        datapath = choice
        return true
    }

    private mutating func set(_ key: String, to value: TOMLValue, path: String) throws(ConfigurationError) {
        func wrong(_ wanted: String) -> ConfigurationError {
            ConfigurationError(path: path, reason: "\(key) must be \(wanted)")
        }
        func number(_ range: ClosedRange<Int>) throws(ConfigurationError) -> Int {
            guard let number = value.int, range.contains(number) else {
                throw wrong("a whole number from \(range.lowerBound) to \(range.upperBound)")
            }
            return number
        }
        func seconds() throws(ConfigurationError) -> UInt32 { UInt32(try number(1...31_536_000)) }
        switch key {
        case "socket":
            guard let text = value.string, text.hasPrefix("/"), text.utf8.count < 108 else {
                throw wrong("an absolute path of at most 107 octets")
            }
            socket = text
        case "socket-group":
            guard let text = value.string, !text.isEmpty else { throw wrong("the name of a group") }
            socketGroup = text
        case "socket-mode": socketMode = UInt32(try number(0o600...0o777))
        case "state-directory":
            guard let text = value.string, text.hasPrefix("/") else { throw wrong("an absolute path") }
            stateDirectory = text
        case "datapath":
            guard let text = value.string, let choice = Datapath(rawValue: text) else {
                throw wrong("\"kernel\" or \"queue\"")
            }
            datapath = choice
        case "first-queue": firstQueue = UInt16(try number(0...65_535))
        case "queues": queues = UInt16(try number(1...64))
        case "queue-length": queueLength = UInt32(try number(64...1_048_576))
        case "treatment":
            guard let text = value.string, let choice = Treatment(rawValue: text) else {
                throw wrong("\"mark\" or \"rewrite\"")
            }
            treatment = choice
        case "mark":
            mark = UInt32(try number(1...0xffff_ffff))
            guard mark & ~MarkLayout.tag == 0 else { throw wrong("a number whose low 20 bits are 0, as in 0x6e600000") }
        case "check-host":
            guard let flag = value.bool else { throw wrong("true or false") }
            checkHost = flag
        case "check-timeout": checkTimeout = UInt32(try number(10...60_000))
        case "reset-timeout": resetTimeout = UInt32(try number(100...60_000))
        case "guard-proven": lifetimes.guardProven = try seconds()
        case "guard-unproven": lifetimes.guardUnproven = try seconds()
        case "guard-client": lifetimes.guardClient = try seconds()
        case "passive-lifetime": lifetimes.passive = try seconds()
        case "reconnect-timeout": lifetimes.reconnect = try seconds()
        case "service": policy.services = try Self.services(value, path: path)
        case "hook": hooks = try Self.hooks(value, path: path)
        case "webhook": webhooks = try Self.webhooks(value, path: path)
        default:
            throw ConfigurationError(path: path, reason: "\(key) is not a setting; docs/nfqmigd.toml lists them")
        }
    }
}

/// A configuration file that cannot be used.
public struct ConfigurationError: Error, Hashable, Sendable, CustomStringConvertible {
    public var path: String
    public var reason: String

    public var description: String { "The configuration \(path) cannot be used: \(reason)." }
}
