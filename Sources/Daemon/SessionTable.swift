// SPDX-License-Identifier: GPL-3.0-or-later

package import Migration
package import Wire

/// The sessions, by key, with what it takes to find those that concern a client, a connection or a four-tuple without
/// looking at all of them. A session that rests takes little: see `SessionRecords`.
package struct SessionTable: Sequence, Sendable {
    private var records = SessionRecords()
    private var ofKey = RecordIndex<KeyName>()
    private var ofNumber = RecordIndex<NumberName>()
    /// The first session of a client, whatever the home, in a list of all; under nil those of every client.
    private var ofClient = RecordIndex<ClientName>()
    /// The same for a client's endpoint; port 0 for those of any port.
    private var ofEndpoint = RecordIndex<EndpointName>()
    /// Whose host has, or is to have, this four-tuple client → host.
    private var ofHostSide = RecordIndex<HostSideName>()
    /// Whose connection client → host has been answered: the one that is rewritten now.
    private var answered = RecordIndex<HostSideName>()
    /// Whose other rewritten connections are answered with this four-tuple.
    private var replyHolders: [FourTuple: SessionKey] = [:]
    /// Who holds a transit of this four-tuple.
    private var transitHolders: [FourTuple: SessionKey] = [:]
    /// Clients' own connections with a host, under another source port.
    package private(set) var direct: Set<SessionKey> = []

    package init() {}

    /// The table of these sessions, with room for no more than them. Of two with the same key the latter counts.
    package init(_ sessions: [Session]) {
        records.reserve(sessions.count)
        ofKey.reserve(sessions.count, in: records)
        ofNumber.reserve(sessions.count, in: records)
        ofEndpoint.reserve(sessions.count, in: records)
        ofHostSide.reserve(sessions.count { $0.hostSide != nil }, in: records)
        for session in sessions { self[session.key] = session }
    }

    package var count: Int { records.count }
    package var values: Values { Values(records: records) }

    package func makeIterator() -> AnyIterator<(key: SessionKey, value: Session)> {
        var values = values.makeIterator()
        return AnyIterator { values.next().map { (key: $0.key, value: $0) } }
    }

    package subscript(key: SessionKey) -> Session? {
        get { place(of: key).map { records[$0] } }
        set {
            let place = place(of: key)
            let old = place.map { records[$0] }
            guard old != newValue else { return }
            if let place, let old { forget(old, at: place, for: newValue) }
            switch (place, newValue) {
            case (nil, nil): break
            case (nil, let session?): remember(session, at: insert(session), since: nil)
            case (let place?, nil): remove(place)
            case (let place?, let session?):
                records.replace(place, by: session)
                remember(session, at: place, since: old)
            }
        }
    }

    private func place(of key: SessionKey) -> Int? { ofKey.place(of: key, in: records) }

    /// What the session with this number is called now.
    package func key(of number: UInt64) -> SessionKey? {
        ofNumber.place(of: number, in: records).map { records.key($0) }
    }

    /// The session whose rewritten connection is answered with this four-tuple, host → client.
    package func session(answeredBy reply: FourTuple) -> Session? {
        if let place = answered.place(of: reply.reversed, in: records) { return records[place] }
        return replyHolders[reply].flatMap { self[$0] }
    }

    /// The session of scope `connection` whose host has this four-tuple, client → host: see `Session.hostSide`.
    package func session(hostSide tuple: FourTuple) -> Session? {
        ofHostSide.place(of: tuple, in: records).map { records[$0] }
    }

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
        guard let place = place(of: key), records.learn(reply, at: place) else { return }
        hold(reply, by: place)
    }

    /// How many replies the sessions have learnt.
    package var replyCount: Int { replyHolders.count + answered.count }
    /// The same without those of sessions of one connection, except where their end is still carried.
    package var replyCountOfMany: Int { replyHolders.count }

    /// How the connections are answered that sessions of many connections have learnt, scopes `client` and `service`. These
    /// come and go without their sessions; what one connection has, goes when its session goes on.
    package var repliesOfMany: [FourTuple] {
        var replies: [FourTuple] = []
        replies.reserveCapacity(replyHolders.count)
        for (reply, key) in replyHolders where key.scope != .connection { replies.append(reply) }
        return replies
    }

    /// Whether it is a session of one connection, scope `connection`, that decides how long this reply stands.
    package func isOfOneConnection(_ reply: FourTuple) -> Bool {
        replyHolders[reply]?.scope == .connection || ofHostSide.place(of: reply.reversed, in: records) != nil
    }

    /// The connection, client → home, of many that is answered with this four-tuple.
    package func connection(answeredBy reply: FourTuple) -> FourTuple? {
        guard let key = replyHolders[reply], key.scope != .connection else { return nil }
        return FourTuple(source: reply.destination, destination: key.home)
    }

    /// No connection is answered with this four-tuple any more. Nothing for a session of one connection.
    package mutating func forget(_ reply: FourTuple) {
        guard let key = replyHolders[reply], key.scope != .connection, let place = place(of: key) else { return }
        replyHolders[reply] = nil
        records.forget(reply, at: place)
    }

    /// Every session of a client, and every session of all clients; all there are when `client` is nil.
    package func sessions(of client: IPAddress?) -> [Session] {
        guard let client else { return Array(values) }
        var found: [Session] = []
        for each in [nil, client] {
            records.forEach(from: ofClient.place(of: each, in: records), in: .ofClient) { found.append(records[$0]) }
        }
        return found
    }

    /// The other sessions of the same client that may concern one of its connections that concerns `key` too.
    package func sessions(around key: SessionKey) -> [Session] {
        guard let client = key.client, key.clientPort != nil else {
            return sessions(of: key.client).filter { $0.key != key }
        }
        var found: [Session] = []
        func add(_ place: Int) {
            let session = records[place]
            if session.key != key { found.append(session) }
        }
        records.forEach(from: ofClient.place(of: nil, in: records), in: .ofClient, add)
        for endpoint in [key.clientEndpoint, Endpoint(address: client, port: 0)] {
            records.forEach(from: ofEndpoint.place(of: endpoint, in: records), in: .ofEndpoint, add)
        }
        return found
    }

    /// The session that holds a transit of this four-tuple.
    package func session(holding tuple: FourTuple) -> Session? { transitHolders[tuple].flatMap { self[$0] } }

    // MARK: - Changes

    private mutating func insert(_ session: Session) -> Int {
        let key = session.key
        let place = records.insert(session)
        ofKey.set(place, key, in: records)
        if let first = ofClient.place(of: key.client, in: records) { records.link(place, before: first, in: .ofClient) }
        ofClient.set(place, key.client, in: records)
        if let first = ofEndpoint.place(of: key.clientEndpoint, in: records) {
            records.link(place, before: first, in: .ofEndpoint)
        }
        ofEndpoint.set(place, key.clientEndpoint, in: records)
        return place
    }

    /// Removes a record that no other index has any more.
    private mutating func remove(_ place: Int) {
        let key = records.key(place)
        ofKey.remove(place, key, in: records)
        if let next = records.unlink(place, from: .ofClient) {
            ofClient.set(next, key.client, in: records)
        } else {
            ofClient.remove(place, key.client, in: records)
        }
        if let next = records.unlink(place, from: .ofEndpoint) {
            ofEndpoint.set(next, key.clientEndpoint, in: records)
        } else {
            ofEndpoint.remove(place, key.clientEndpoint, in: records)
        }
        records.remove(place)
    }

    private mutating func forget(_ old: Session, at place: Int, for new: Session?) {
        let key = old.key
        for tuple in old.transits.keys where new?.transits[tuple] == nil && transitHolders[tuple] == key {
            transitHolders[tuple] = nil
        }
        for reply in old.replies where new?.replies.contains(reply) != true && replyHolders[reply] == key {
            replyHolders[reply] = nil
        }
        if let tuple = old.hostSide {
            if new?.hostSide != tuple { ofHostSide.remove(place, tuple, in: records) }
            let isAnswered = new?.replies.contains(tuple.reversed) ?? false
            if new?.hostSide != tuple || !isAnswered, answered.place(of: tuple, in: records) == place {
                answered.remove(place, tuple, in: records)
                // The reply is still the session's, though not that of its present connection.
                if isAnswered { replyHolders[tuple.reversed] = key }
            }
        }
        if new?.id != old.id { ofNumber.remove(place, old.id, in: records) }
        if new?.isDirect != true { direct.remove(key) }
    }

    private mutating func remember(_ new: Session, at place: Int, since old: Session?) {
        let key = new.key
        for tuple in new.transits.keys where old?.transits[tuple] == nil { transitHolders[tuple] = key }
        for reply in new.replies where old?.replies.contains(reply) != true { hold(reply, by: place) }
        if let tuple = new.hostSide {
            ofHostSide.set(place, tuple, in: records)
            if replyHolders[tuple.reversed] == key { hold(tuple.reversed, by: place) }
        }
        if new.id != old?.id { ofNumber.set(place, new.id, in: records) }
        if new.isDirect { direct.insert(key) }
    }

    /// Who is answered with `reply` is this session from now on.
    private mutating func hold(_ reply: FourTuple, by place: Int) {
        let tuple = reply.reversed
        if records.hostSide(place) == tuple {
            replyHolders[reply] = nil
            answered.set(place, tuple, in: records)
        } else {
            if let other = answered.place(of: tuple, in: records) { answered.remove(other, tuple, in: records) }
            replyHolders[reply] = records.key(place)
        }
    }

    /// All sessions, made one by one for whoever looks at them.
    package struct Values: Sequence, IteratorProtocol {
        fileprivate let records: SessionRecords
        private var place = 0

        fileprivate init(records: SessionRecords) { self.records = records }

        package var underestimatedCount: Int { records.count }

        package mutating func next() -> Session? {
            while place < records.places.upperBound {
                defer { place += 1 }
                if records.isTaken(place) { return records[place] }
            }
            return nil
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
