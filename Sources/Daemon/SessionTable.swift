// SPDX-License-Identifier: GPL-3.0-or-later

package import Migration
package import Wire

/// The sessions, by key, with what it takes to find those that concern a client, a connection or a four-tuple without
/// looking at all of them.
package struct SessionTable: Sequence {
    private var sessions: [SessionKey: Session] = [:]
    /// Every session of a client, whatever the home; under nil those of every client.
    private var ofClient: [IPAddress?: Set<SessionKey>] = [:]
    /// The same for a client's endpoint; port 0 for those of any port.
    private var ofEndpoint: [Endpoint: Keys] = [:]
    /// Who holds a transit of this four-tuple.
    private var transitHolders: [FourTuple: SessionKey] = [:]
    /// Whose rewritten connection is answered with this four-tuple.
    private var replyHolders: [FourTuple: SessionKey] = [:]
    /// Whose host has, or is to have, this four-tuple client → host.
    private var hostSideHolders: [FourTuple: SessionKey] = [:]
    /// Clients' own connections with a host, under another source port.
    package private(set) var direct: Set<SessionKey> = []

    package init() {}

    package var count: Int { sessions.count }
    package var keys: Dictionary<SessionKey, Session>.Keys { sessions.keys }
    package var values: Dictionary<SessionKey, Session>.Values { sessions.values }

    package func makeIterator() -> Dictionary<SessionKey, Session>.Iterator { sessions.makeIterator() }

    package subscript(key: SessionKey) -> Session? {
        get { sessions[key] }
        set {
            let old = sessions[key]
            guard old != newValue else { return }
            forget(old, for: newValue)
            sessions[key] = newValue
            if let newValue { remember(newValue, since: old) }
        }
    }

    /// The session whose rewritten connection is answered with this four-tuple, host → client.
    package func session(answeredBy reply: FourTuple) -> Session? { replyHolders[reply].flatMap { sessions[$0] } }

    /// The session of scope `connection` whose host has this four-tuple, client → host: see `Session.hostSide`.
    package func session(hostSide tuple: FourTuple) -> Session? { hostSideHolders[tuple].flatMap { sessions[$0] } }

    /// Sessions whose host may have the same four-tuple from the client itself, by a connection that `key` covers.
    package func sessions(atHostOf key: SessionKey) -> [Session] {
        let candidates =
            key.clientPort == nil ? sessions(of: key.client) : session(hostSide: key.original).map { [$0] } ?? []
        return candidates.filter { session in
            guard session.key != key, let tuple = session.hostSide else { return false }
            return tuple.destination == key.home && key.covers(tuple.source)
        }
    }

    /// A rewritten connection of a session is answered with this four-tuple. Costs the same however many there are, unless
    /// the caller holds a copy of the session.
    package mutating func learn(_ reply: FourTuple, of key: SessionKey) {
        guard sessions[key]?.replies.insert(reply).inserted == true else { return }
        replyHolders[reply] = key
    }

    /// Every session of a client, and every session of all clients; all there are when `client` is nil.
    package func sessions(of client: IPAddress?) -> [Session] {
        guard let client else { return Array(sessions.values) }
        return keys(of: client).compactMap { sessions[$0] }
    }

    private func keys(of client: IPAddress) -> Set<SessionKey> {
        let everybody = ofClient[.none] ?? []
        return ofClient[client].map { $0.union(everybody) } ?? everybody
    }

    /// The other sessions of the same client that may concern one of its connections that concerns `key` too.
    package func sessions(around key: SessionKey) -> [Session] {
        guard let client = key.client, key.clientPort != nil else {
            return sessions(of: key.client).filter { $0.key != key }
        }
        let any = Endpoint(address: client, port: 0)
        return (ofClient[.none] ?? []).union(ofEndpoint[key.clientEndpoint]?.all ?? []).union(
            ofEndpoint[any]?.all ?? []
        )
        .compactMap { $0 == key ? nil : sessions[$0] }
    }

    /// The session that holds a transit of this four-tuple.
    package func session(holding tuple: FourTuple) -> Session? { transitHolders[tuple].flatMap { sessions[$0] } }

    private mutating func forget(_ old: Session?, for new: Session?) {
        guard let old else { return }
        let key = old.key
        for tuple in old.transits.keys where new?.transits[tuple] == nil && transitHolders[tuple] == key {
            transitHolders[tuple] = nil
        }
        for reply in old.replies where new?.replies.contains(reply) != true && replyHolders[reply] == key {
            replyHolders[reply] = nil
        }
        if let tuple = old.hostSide, new?.hostSide != tuple, hostSideHolders[tuple] == key {
            hostSideHolders[tuple] = nil
        }
        if new?.isDirect != true { direct.remove(key) }
        guard new == nil else { return }
        ofClient[key.client]?.remove(key)
        if ofClient[key.client]?.isEmpty ?? false { ofClient[key.client] = nil }
        ofEndpoint[key.clientEndpoint] = ofEndpoint[key.clientEndpoint]?.without(key)
    }

    private mutating func remember(_ new: Session, since old: Session?) {
        let key = new.key
        for tuple in new.transits.keys where old?.transits[tuple] == nil { transitHolders[tuple] = key }
        for reply in new.replies where old?.replies.contains(reply) != true { replyHolders[reply] = key }
        if let tuple = new.hostSide { hostSideHolders[tuple] = key }
        if new.isDirect { direct.insert(key) }
        guard old == nil else { return }
        ofClient[key.client, default: []].insert(key)
        ofEndpoint[key.clientEndpoint] = ofEndpoint[key.clientEndpoint]?.with(key) ?? .one(key)
    }

    /// The keys of a client's endpoint: nearly always one, which needs no memory of its own.
    private enum Keys {
        case one(SessionKey)
        case several(Set<SessionKey>)

        var all: Set<SessionKey> {
            switch self {
            case .one(let key): [key]
            case .several(let keys): keys
            }
        }

        func with(_ key: SessionKey) -> Keys {
            let more = all.union([key])
            return more.count > 1 ? .several(more) : .one(key)
        }

        func without(_ key: SessionKey) -> Keys? {
            let rest = all.subtracting([key])
            return rest.count > 1 ? .several(rest) : rest.first.map { .one($0) }
        }
    }
}

/// Migrations that wait for their client's new connection, found by the client's endpoint.
package struct AwaitedReconnects {
    private var ofEndpoint: [Endpoint: Set<UInt64>] = [:]
    private var endpoints: [UInt64: Endpoint] = [:]
    /// Those that wait for any client.
    private var ofEverybody: Set<UInt64> = []

    package init() {}

    package var isEmpty: Bool { endpoints.isEmpty }

    package mutating func insert(_ id: UInt64, _ key: SessionKey) {
        remove(id)
        endpoints[id] = key.clientEndpoint
        if key.client == nil { ofEverybody.insert(id) }
        ofEndpoint[key.clientEndpoint, default: []].insert(id)
    }

    /// The session of a migration that may wait is called `key` now.
    package mutating func follow(_ id: UInt64, _ key: SessionKey) {
        if endpoints[id] != nil { insert(id, key) }
    }

    package mutating func remove(_ id: UInt64) {
        guard let endpoint = endpoints.removeValue(forKey: id) else { return }
        ofEverybody.remove(id)
        ofEndpoint[endpoint]?.remove(id)
        if ofEndpoint[endpoint]?.isEmpty ?? false { ofEndpoint[endpoint] = nil }
    }

    /// Those that wait for this client endpoint, or for its address from any port.
    package func ids(of client: Endpoint) -> Set<UInt64> {
        // Conntrack announces every connection of the gateway, so this is asked much more often than anybody waits.
        guard !endpoints.isEmpty else { return [] }
        var ids = ofEndpoint[client] ?? []
        if let any = ofEndpoint[Endpoint(address: client.address, port: 0)] { ids.formUnion(any) }
        if !ofEverybody.isEmpty { ids.formUnion(ofEverybody) }
        return ids
    }
}
