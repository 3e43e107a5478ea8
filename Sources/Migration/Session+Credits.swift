// SPDX-License-Identifier: GPL-3.0-or-later

internal import Rewriter
internal import Ruleset
public import Wire

extension Session {
    /// Whether the next connection of its client may come from another port and belong to it all the same.
    public var isFollowing: Bool { binding != nil && key.scope == .connection && !isDirect }

    /// Whether this four-tuple client → home is one that the session is bound to now, not one it has left.
    func isPresent(_ tuple: FourTuple) -> Bool {
        key.clientPort == nil || key.clientPort == tuple.source.port
    }

    /// The session once its client has begun its next connection from another port, which the host sees as `sourcePort`
    /// (nil: as it is). Where user space carries the segments, the end of the connection before it (a FIN that is still
    /// to be acknowledged) is carried on for `tail` seconds.
    public func following(to port: UInt16, sourcePort: UInt16? = nil, tail: UInt32) -> Session {
        var next = self
        let left = key.original
        next.key.clientPort = port
        // The old one was found, or stated, for the old port.
        next.binding?.sourcePort = sourcePort
        next.yields = false
        next.endTransit(of: next.key.original)
        if let binding, binding.datapath == .queue, transits[left] == nil {
            next.transits[left] = StandingTransit(
                transit: .trailing, host: binding.host, lifetime: tail, migration: 0, sourcePort: binding.sourcePort)
        }
        return next
    }

    /// How connections are answered whose end is still carried. They need no binding.
    public var trailingReplies: Set<FourTuple> {
        Set(transits.lazy.filter { $0.value.transit == .trailing }.map { $0.value.reply(to: $0.key.source) })
    }

    /// Nothing more is held against the segments of this four-tuple client → home: another connection begins on it.
    public mutating func endTransit(of tuple: FourTuple) {
        guard let standing = transits.removeValue(forKey: tuple), standing.transit == .trailing else { return }
        replies.remove(standing.reply(to: tuple.source))
    }
}

/// Gives the new connections of one client to one home to the sessions that have lost theirs: to each as many as were
/// moved, and none to nobody. A value that is made for some SYNs, asked about each in the order in which they came, and
/// then read for what has become of the sessions.
public struct ReconnectCredits: Sendable {
    /// What a new connection is.
    public enum Decision: Hashable, Sendable {
        /// The one that its own session has from this very port.
        case own
        /// The next one of this session, which follows it.
        case follows(Session)
        /// Nobody's: home serves it.
        case unbound
    }

    /// Seconds for which the end of a connection is carried on.
    private let tail: UInt32
    private let before: [Session]
    private var sessions: [Session]
    private var keys: Set<SessionKey>
    /// Who holds something against a four-tuple.
    private var holders: [FourTuple: Set<Int>] = [:]
    /// The sessions before this one owe no connection, or have got it.
    private var next = 0

    /// `sessions`: all sessions of scope `connection` of this client and home.
    public init(_ sessions: [Session], tail: UInt32) {
        self.tail = tail
        before = sessions.sorted { $0.id < $1.id }
        self.sessions = before
        keys = Set(sessions.map(\.key))
        for (place, session) in before.enumerated() {
            for tuple in session.transits.keys where tuple.destination == session.key.home {
                holders[tuple, default: []].insert(place)
            }
        }
    }

    /// Decides about a SYN with this four-tuple client → home. `isOpen`: the connection is there already, and this is its
    /// SYN once more. `owes` says of a session whether its connection has gone; the oldest that owes one takes this one, and
    /// `place` says as which port its host is to see the client's (nil: as it is).
    public mutating func decide(
        _ tuple: FourTuple, isOpen: Bool, owes: (Session) throws -> Bool,
        place: (Session) throws -> UInt16?
    ) rethrows -> Decision {
        let client = tuple.source
        let key = SessionKey(client: client.address, clientPort: client.port, home: tuple.destination)
        if keys.contains(key) { return .own }
        let taker = isOpen ? nil : try nextOwing(owes)
        // Another connection begins on this four-tuple, whoever serves it.
        for place in holders.removeValue(forKey: tuple) ?? [] { sessions[place].endTransit(of: tuple) }
        guard let taker else { return .unbound }
        let sourcePort = try place(sessions[taker])
        keys.remove(sessions[taker].key)
        keys.insert(key)
        holders[sessions[taker].key.original, default: []].insert(taker)
        sessions[taker] = sessions[taker].following(to: client.port, sourcePort: sourcePort, tail: tail)
        return .follows(sessions[taker])
    }

    private mutating func nextOwing(_ owes: (Session) throws -> Bool) rethrows -> Int? {
        while next < sessions.count {
            let place = next
            next += 1
            if sessions[place].isFollowing, try owes(sessions[place]) { return place }
        }
        return nil
    }

    /// The sessions that are not as they were.
    public var changes: [(from: Session, to: Session)] {
        zip(before, sessions).compactMap { $0 == $1 ? nil : (from: $0, to: $1) }
    }
}

extension SessionChange {
    /// The changes of several sessions as one.
    public init(_ changes: [(from: Session, to: Session)]) {
        self.init(joining: changes.map { SessionChange(from: $0.from, to: $0.to) })
    }
}
