// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Logging
internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix

/// The control interface: HTTP/1.1 and JSON on a UNIX socket. It translates and decides nothing.
struct ControlService {
    let coordinator: Coordinator
    let configuration: Configuration
    let logger: Logger

    /// How many octets the headers of a request may have together.
    static let longestHeaders = 16 << 10

    /// Tells a connection that the daemon is about to end.
    struct Ending: Sendable {}

    /// Serves until the task is cancelled, and then lets running answers come to their end for a moment.
    func run() async throws {
        let socket = try ControlSocket(configuration)
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        let connections = OpenConnections()
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

    private func bootstrap(_ group: MultiThreadedEventLoopGroup, _ connections: OpenConnections) -> ServerBootstrap {
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
                    let admission = connections.add(channel, of: caller.user)
                    // The error closes it.
                    if admission == .closed { throw ChannelError.ioOnClosedChannel }
                    let meter = RequestMeter()
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(meter)
                    try pipeline.addHandler(HTTPResponseEncoder())
                    try pipeline.addHandler(
                        ByteToMessageHandler(HTTPRequestDecoder(limitConfiguration: limits)))
                    try pipeline.addHandler(HTTPServerPipelineHandler())
                    try pipeline.addHandler(
                        ControlConnection(
                            responder: responder, caller: caller, connections: connections, meter: meter,
                            isOneTooMany: admission == .refused))
                }
            }
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
