// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Logging
internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix
internal import Synchronization

/// The control interface: HTTP/1.1 and JSON on a UNIX socket. It translates and decides nothing.
struct ControlService {
    let coordinator: Coordinator
    let configuration: Configuration
    let logger: Logger

    /// How many connections are served at once; one more is told so.
    static let connectionLimit = 128
    /// How many octets the headers of a request may have together.
    static let longestHeaders = 16 << 10

    /// Tells a connection that the daemon is about to end.
    struct Ending: Sendable {}

    /// Serves until the task is cancelled, and then lets running answers come to their end for a moment.
    func run() async throws {
        let socket = try ControlSocket(configuration)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let connections = Connections()
        do {
            let listener: any Channel
            do {
                listener = try await bootstrap(group, connections).withBoundSocket(socket.descriptor).get()
            } catch {
                throw SystemError(
                    operation: .controlSocket, errno: (error as? IOError)?.errnoCode ?? EINVAL, path: socket.path)
            }
            logger.notice("listening on \(socket.path)")
            let ended = Waiter()
            await ended.wait()
            // First the name goes, then the door, then those inside.
            socket.remove()
            try await listener.close()
            // A task of its own: this one is cancelled, and would not wait.
            await Task {
                await coordinator.endWaiting()
                await connections.end()
            }.value
        } catch {
            socket.remove()
            try? await group.shutdownGracefully()
            throw error
        }
        try await group.shutdownGracefully()
    }

    private func bootstrap(_ group: MultiThreadedEventLoopGroup, _ connections: Connections) -> ServerBootstrap {
        let responder = ControlResponder(
            table: RouteTable(routes: coordinator.routes), idempotency: IdempotencyStore(), logger: logger)
        var limits = NIOHTTPDecoderLimitConfiguration()
        limits.maxHeaderFieldSize = Self.longestHeaders
        limits.maxHeaderListSize = Self.longestHeaders
        limits.maxHeaderFieldCount = 64
        return ServerBootstrap(group: group)
            .serverChannelOption(.backlog, value: 1024)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelInitializer { [limits] channel in
                Caller.ofOtherEnd(of: channel).flatMapThrowing { caller in
                    let isOneTooMany = connections.add(channel)
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(HTTPResponseEncoder())
                    try pipeline.addHandler(
                        ByteToMessageHandler(HTTPRequestDecoder(limitConfiguration: limits)))
                    try pipeline.addHandler(HTTPServerPipelineHandler())
                    try pipeline.addHandler(
                        ControlConnection(responder: responder, caller: caller, isOneTooMany: isOneTooMany))
                }
            }
    }
}

/// The connections that are open.
private final class Connections: Sendable {
    private let open = Mutex<[ObjectIdentifier: any Channel]>([:])

    /// Whether `channel` is one too many.
    func add(_ channel: any Channel) -> Bool {
        let count = open.withLock { open in
            open[ObjectIdentifier(channel)] = channel
            return open.count
        }
        channel.closeFuture.whenComplete { [weak self] _ in
            _ = self?.open.withLock { $0.removeValue(forKey: ObjectIdentifier(channel)) }
        }
        return count > ControlService.connectionLimit
    }

    /// Gives running answers a second, and closes what is still open then.
    func end() async {
        for _ in 0..<20 {
            let channels = open.withLock { Array($0.values) }
            if channels.isEmpty { return }
            for channel in channels { channel.pipeline.fireUserInboundEventTriggered(ControlService.Ending()) }
            try? await Task.sleep(for: .milliseconds(50))
        }
        for channel in open.withLock({ Array($0.values) }) { channel.close(promise: nil) }
    }
}

/// struct ucred of unix(7), which Swift's Glibc module does not show.
private struct PeerCredentials: Sendable {
    var process: Int32 = 0
    var user: UInt32 = 0
    var group: UInt32 = 0
}

extension Caller {
    /// Who has connected, as the kernel noted it when they did.
    fileprivate static func ofOtherEnd(of channel: any Channel) -> EventLoopFuture<Caller> {
        guard let provider = channel as? any SocketOptionProvider else {
            return channel.eventLoop.makeFailedFuture(ChannelError.operationUnsupported)
        }
        let credentials: EventLoopFuture<PeerCredentials> = provider.unsafeGetSocketOption(
            level: .socket, name: NIOBSDSocket.Option(rawValue: SO_PEERCRED))
        return credentials.map { Caller(user: $0.user, group: $0.group, process: $0.process) }
    }
}
