// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Foundation
internal import Glibc
public import Logging
internal import NFQueueBridge
internal import Ruleset

/// The daemon as a whole: what `nfqmigd run` does, and the two commands beside it.
public enum Daemon {
    /// Runs in the foreground until SIGTERM or SIGINT. The kernel's table stays when it ends, so that sessions that have
    /// moved go on.
    /// `reread` reads the configuration again, for SIGHUP.
    public static func run(
        _ configuration: Configuration, logger: Logger, reread: @escaping @Sendable () throws -> Configuration
    ) async throws {
        try requireCapabilities()
        let loop = try EventLoop()
        let journal = try SQLiteJournal(directory: configuration.stateDirectory)
        let gateway = try Gateway(configuration)
        let coordinator = Coordinator(
            configuration: configuration, gateway: gateway, journal: journal, loop: loop, logger: logger)
        let thread = Thread { loop.run() }
        thread.name = "control"
        thread.start()
        do {
            try await coordinator.start()
            let service = ControlService(coordinator: coordinator, configuration: configuration, logger: logger)
            let serving = Task { try await service.run() }
            let signals = Signals([SIGTERM, SIGINT]) { serving.cancel() }
            defer { signals.cancel() }
            let reloading = Signals([SIGHUP]) { reload(coordinator, from: reread) }
            defer { reloading.cancel() }
            do {
                try await serving.value
            } catch is CancellationError {
            } catch  where serving.isCancelled {
            }
        } catch {
            await coordinator.stop()
            loop.stop()
            throw error
        }
        logger.notice("stopping; the table stays")
        await coordinator.endWebhooks()
        await coordinator.stop()
        loop.stop()
    }

    private static func reload(_ coordinator: Coordinator, from reread: @Sendable () throws -> Configuration) {
        do {
            let configuration = try reread()
            Task { await coordinator.reload(configuration) }
        } catch {
            let reason = "\(error)"
            Task { await coordinator.refuseReload(reason) }
        }
    }

    /// The table as nft text.
    public static func rulesetText(_ configuration: Configuration) -> String {
        Ruleset(Gateway.rulesetOptions(configuration)).text()
    }

    /// Removes the table. Sessions that have moved are cut. Refused while a daemon answers on the configured socket.
    public static func removeTable(_ configuration: Configuration) throws -> Bool {
        try requireCapabilities()
        if ControlSocket.isAnswered(configuration.socket) { throw DaemonRuns(path: configuration.socket) }
        let table = try NetfilterTable(Gateway.rulesetOptions(configuration))
        guard try table.exists else { return false }
        try table.remove()
        return true
    }

    /// What the process may not do without.
    private static func requireCapabilities() throws(MissingCapability) {
        // linux/capability.h: CAP_NET_ADMIN 12, CAP_NET_RAW 13.
        for (name, number) in [("CAP_NET_ADMIN", UInt32(12)), ("CAP_NET_RAW", UInt32(13))]
        where nfqmig_has_capability(number) != 1 {
            throw MissingCapability(name: name)
        }
    }
}

/// The process lacks a capability.
public struct MissingCapability: Error, Hashable, Sendable, CustomStringConvertible {
    public var name: String

    public var description: String {
        "nfqmigd needs \(name): start it as root, or give it AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in its systemd unit."
    }
}

/// Signals, as a call.
private final class Signals {
    private let sources: [any DispatchSourceSignal]

    init(_ numbers: [Int32], _ body: @escaping @Sendable () -> Void) {
        sources = numbers.map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler(handler: body)
            source.resume()
            return source
        }
    }

    func cancel() { for source in sources { source.cancel() } }
}
