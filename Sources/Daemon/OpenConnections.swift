// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc
internal import NIOCore
internal import Synchronization

/// The connections of the control interface that are open, and how much of it each user may have: whoever may write to the
/// socket must not be able to take it, or the daemon's descriptors and memory, away from everybody else.
final class OpenConnections: Sendable {
    /// How many connections are served at once.
    static let limit = 128
    /// How many of them may belong to users other than root and the daemon's own.
    static let limitOfOthers = 96
    /// How many of these to one user.
    static let limitOfOneUser = 64
    /// How many beyond may wait to be told so; further ones are closed without a word.
    static let limitOfRefused = 32
    /// How many octets of bodies all connections may hold together.
    static let roomForBodies = 16 << 20
    /// How many of them those of users other than root and the daemon's own, and those of one of these users.
    static let roomOfOthers = 12 << 20
    static let roomOfOneUser = 8 << 20

    /// What becomes of a new connection.
    enum Admission: Hashable, Sendable {
        case served
        /// Its first request is answered with a refusal.
        case refused
        case closed
    }

    private struct Entry {
        let channel: any Channel
        let user: uid_t
        let admission: Admission
    }

    private struct State {
        var entries: [ObjectIdentifier: Entry] = [:]
        /// Octets of bodies, by user.
        var bodies: [uid_t: Int] = [:]
    }

    private let state = Mutex(State())

    /// Counts a new connection of this user.
    func add(_ channel: any Channel, of user: uid_t) -> Admission {
        let admission = state.withLock { state in
            let served = state.entries.values.filter { $0.admission == .served }
            let others = served.filter { Self.isOther($0.user) }
            let admission: Admission
            if served.count < Self.limit
                && (!Self.isOther(user)
                    || others.count < Self.limitOfOthers
                        && others.count(where: { $0.user == user }) < Self.limitOfOneUser)
            {
                admission = .served
            } else if state.entries.count - served.count < Self.limitOfRefused {
                admission = .refused
            } else {
                return Admission.closed
            }
            state.entries[ObjectIdentifier(channel)] = Entry(channel: channel, user: user, admission: admission)
            return admission
        }
        if admission == .closed { return admission }
        channel.closeFuture.whenComplete { [weak self] _ in
            _ = self?.state.withLock { $0.entries.removeValue(forKey: ObjectIdentifier(channel)) }
        }
        return admission
    }

    /// Sets room for a part of a body of this user's aside; false when there is none.
    func takeRoom(_ octets: Int, for user: uid_t) -> Bool {
        state.withLock { state in
            let all = state.bodies.values.reduce(octets, +)
            guard all <= Self.roomForBodies else { return false }
            if Self.isOther(user) {
                let others = state.bodies.filter { Self.isOther($0.key) }.values.reduce(octets, +)
                let own = state.bodies[user, default: 0] + octets
                guard others <= Self.roomOfOthers, own <= Self.roomOfOneUser else { return false }
            }
            state.bodies[user, default: 0] += octets
            return true
        }
    }

    func giveBackRoom(_ octets: Int, of user: uid_t) {
        if octets == 0 { return }
        state.withLock { state in
            let rest = state.bodies[user, default: 0] - octets
            state.bodies[user] = rest > 0 ? rest : nil
        }
    }

    /// Whether it is neither root nor the daemon's own user.
    private static func isOther(_ user: uid_t) -> Bool { user != 0 && user != geteuid() }

    /// Gives running answers a second, and closes what is still open then.
    func end() async {
        for _ in 0..<20 {
            let channels = state.withLock { $0.entries.values.map(\.channel) }
            if channels.isEmpty { return }
            for channel in channels { channel.pipeline.fireUserInboundEventTriggered(ControlService.Ending()) }
            try? await Task.sleep(for: .milliseconds(50))
        }
        for channel in state.withLock({ $0.entries.values.map(\.channel) }) { channel.close(promise: nil) }
    }
}

/// Counts what comes in for one request: what the parser throws away (extensions of chunks, empty lines) meets none of its
/// own limits. Confined to the channel's event loop.
final class RequestMeter: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer

    /// The longest request in octets, whatever it consists of: a chunked body may be in small chunks.
    static let longestRequest = 4 << 20

    private var octets = 0

    /// From here on it is the next request.
    func begin() { octets = 0 }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let before = octets
        octets += unwrapInboundIn(data).readableBytes
        if octets <= Self.longestRequest { return context.fireChannelRead(data) }
        if before <= Self.longestRequest { context.fireErrorCaught(RequestTooLong()) }
    }
}

/// A request has more octets than any may have.
struct RequestTooLong: Error {}
