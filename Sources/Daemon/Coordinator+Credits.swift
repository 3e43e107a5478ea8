// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Wire

/// Sessions of scope `connection` follow clients that come back from another port.
extension Coordinator {
    /// How long a connection that was given to a session may be unknown to conntrack, in nanoseconds.
    private static let givingTime: UInt64 = 100_000_000

    /// Decides about SYNs that wait in the queues, all with one change of the gateway, and lets them go.
    func decide(about held: [Observation]) {
        if held.isEmpty { return }
        // What has been decided in this turn names sessions by the keys that they have now.
        guard !isCommitting else {
            setAside += held
            loop.next { self.drainObservations() }
            return
        }
        // The reset of a canary's connection is to be seen while its session still has that connection's port.
        if isWatchingCanary { drainEvents() }
        commit()
        do {
            let lookup = ConnectionLookup(gateway.conntrack)
            // Two connections that one host would take for the same are told apart one by one, before the others.
            let watched = Set(held.map(\.segment.tuple).filter { sessions.session(hostSide: $0)?.watched == $0 })
            for tuple in watched {
                try decide(aboutWatched: tuple, lookup)
                // What follows from one is in the kernel before a session's key changes with the next.
                commit()
            }
            try decide(about: held.map(\.segment.tuple).filter { !watched.contains($0) }, lookup)
            release(held) { self.decision($0) }
        } catch {
            // Its client sends each SYN again, in a second.
            logger.error("a new connection cannot be decided about: \(error)")
            release(held) { _ in .drop }
        }
    }

    private func decide(about tuples: [FourTuple], _ lookup: ConnectionLookup) throws {
        var groups: [SessionKey: ReconnectCredits] = [:]
        var followers: [FourTuple: Session] = [:]
        for tuple in tuples {
            let group = SessionKey(client: tuple.source.address, clientPort: nil, home: tuple.destination)
            var credits = groups[group] ?? credits(of: group)
            let decision = try decide(tuple, &credits, isOpen: isOpen(tuple, lookup), lookup)
            if case .follows(let session) = decision { followers[tuple] = session }
            groups[group] = credits
        }
        try follow(groups.values.flatMap(\.changes))
        for (tuple, session) in followers where sessions[session.key] != nil { tell(tuple, session) }
    }

    /// Decides about a SYN to a host whose four-tuple that host has, or is to have, from a session. The connection that
    /// conntrack has is the session's.
    private func decide(aboutWatched tuple: FourTuple, _ lookup: ConnectionLookup) throws {
        let group = SessionKey(client: tuple.source.address, clientPort: nil, home: tuple.destination)
        var credits = credits(of: group)
        // One that the kernel carries cannot follow: the kernel would take the holder's segments for its own.
        if case .follows(let session) = try decide(tuple, &credits, isOpen: false, lookup),
            session.binding?.datapath == .queue
        {
            try follow(credits.changes)
            return tell(tuple, session)
        }
        guard let holder = sessions.session(hostSide: tuple) else { return }
        let entry = try lookup.entry(tuple)
        let isThere = entry.map { $0.phase != .closed } ?? false
        if let entry, !isThere { _ = try gateway.conntrack.delete(entry) }
        try separate(tuple, from: holder, isThere: isThere)
    }

    private func credits(of group: SessionKey) -> ReconnectCredits {
        let concerned = sessions.sessions(of: group.client).filter {
            $0.key.client == group.client && $0.key.home == group.home && $0.key.scope == .connection
        }
        return ReconnectCredits(concerned, tail: configuration.lifetimes.guardClient)
    }

    private func decide(
        _ tuple: FourTuple, _ credits: inout ReconnectCredits, isOpen: Bool, _ lookup: ConnectionLookup
    ) throws -> ReconnectCredits.Decision {
        try credits.decide(
            tuple, isOpen: isOpen, owes: { try self.owes($0, lookup) },
            place: { try self.sourcePort(of: $0, from: tuple.source) })
    }

    /// Whether conntrack has a connection of this four-tuple that goes on. One that has ended is forgotten: it would
    /// keep its translation for the new one.
    private func isOpen(_ tuple: FourTuple, _ lookup: ConnectionLookup) throws -> Bool {
        guard let entry = try lookup.entry(tuple) else { return false }
        switch entry.phase {
        case .opening, .halfOpen, .established: return true
        case .closing, .leaving, .closed:
            _ = try gateway.conntrack.delete(entry)
            return false
        }
    }

    /// Whether the session's connection has gone.
    private func owes(_ session: Session, _ lookup: ConnectionLookup) throws -> Bool {
        guard let binding = session.binding else { return false }
        guard let entry = try lookup.entry(session.tracked) else {
            // Its SYN may still be on the way from the queue to conntrack.
            return !isOnItsWay(session.id)
        }
        switch entry.phase {
        case .opening, .halfOpen, .established: return entry.reply.source != binding.host
        case .closing, .leaving, .closed: return true
        }
    }

    /// Whether a connection was given to the session so short a time ago that conntrack need not know it yet.
    func isOnItsWay(_ session: UInt64) -> Bool {
        given[session].map { EventLoop.now - $0 <= Self.givingTime } ?? false
    }

    /// Brings sessions to where their clients have come back from: journal, gateway, and everything that knows them by
    /// their key.
    private func follow(_ followers: [(from: Session, to: Session)]) throws {
        if followers.isEmpty { return }
        let changes = settled(followers)
        try journal.write(changes.map(\.to), insteadOf: changes.map(\.from.key))
        do {
            try gateway.install(
                SessionChange(changes), undoneBy: SessionChange(changes.map { (from: $0.to, to: $0.from) }))
        } catch {
            try? journal.write(changes.map(\.from), insteadOf: changes.map(\.to.key))
            throw error
        }
        rename(changes)
        for (from, to) in changes where from.key != to.key {
            let text = "session \(to.id): \(from.key.clientText) → \(to.key.clientText)"
            eventLog.publish(
                .sessionFollowed, "followed", text, migration: latest[to.key],
                service: policy.service(of: to.key)?.name)
            logger.notice("the session follows its client", metadata: ["session": "\(text)"])
        }
        try takeBack(changes)
    }

    /// The changes together with those of sessions that watch for what these take: one four-tuple has one treatment, and what
    /// was taken must not go with the watch.
    private func settled(_ followers: [(from: Session, to: Session)]) -> [(from: Session, to: Session)] {
        var changes = followers
        for index in changes.indices { changes[index].to.yields = yields(changes[index].to) }
        let places = Dictionary(
            changes.enumerated().compactMap { place, change in change.to.hostSide.map { ($0, place) } }
        ) { first, _ in first }
        let following = Set(followers.map(\.from.key))
        for (_, to) in followers where to.binding != nil {
            let tuple = to.key.original
            if let place = places[tuple] {
                changes[place].to.yields = true
            } else if let holder = sessions.session(hostSide: tuple), !holder.yields, !following.contains(holder.key) {
                var yielding = holder
                yielding.yields = true
                changes.append((from: holder, to: yielding))
            }
        }
        return changes
    }

    /// A client may have come back from the same port while its session was given another connection: the queue's thread
    /// had let that SYN pass. Then the session stays where it was.
    private func takeBack(_ changes: [(from: Session, to: Session)]) throws {
        let left = Dictionary(changes.filter { $0.from.key != $0.to.key }.map { ($0.from.key.original, $0) }) { $1 }
        if left.isEmpty { return }
        var late: Set<FourTuple> = []
        for observation in takeObservations() {
            if observation.opensConnection { late.insert(observation.segment.tuple) }
            setAside.append(observation)
        }
        if !setAside.isEmpty { loop.next { self.drainObservations() } }
        if late.isEmpty { return }
        commit()
        let back = late.compactMap { left[$0] }.filter { sessions[$0.from.key] == nil }.map { change in
            var before = change.from
            before.endTransit(of: change.to.key.original)
            return (from: sessions[change.to.key] ?? change.to, to: before)
        }
        if !back.isEmpty { try follow(back) }
    }

    private func rename(_ changes: [(from: Session, to: Session)]) {
        let moved = Dictionary(changes.filter { $0.from.key != $0.to.key }.map { ($0.from.key, $0.to) }) { $1 }
        for (key, session) in moved {
            let ids = Set([latest[key], preparing[key]].compactMap { $0 }).union(standing[key] ?? [])
            for id in ids.union(session.transits.values.map(\.migration)) {
                guard let running = migrations[id], running.machine.request.session == key else { continue }
                running.machine.follow(session)
                awaitingReconnect.follow(id, session.key)
            }
        }
        followLifetimes(of: moved)
        for drain in drains.values where !drain.machine.isFinished { drain.members.follow(moved.mapValues(\.key)) }
        let old = moved.map { key, session in
            (
                session, latest.removeValue(forKey: key), preparing.removeValue(forKey: key),
                standing.removeValue(forKey: key)
            )
        }
        for key in moved.keys { sessions[key] = nil }
        for (session, latest, preparing, standing) in old {
            self.latest[session.key] = latest
            self.preparing[session.key] = preparing
            self.standing[session.key] = standing
        }
        // All of them first: what the gateway has already must not be decided once more.
        for (_, to) in changes { keep(to) }
        for (from, to) in changes {
            settle(to, since: from)
            settleWatches(around: from.key)
            settleWatches(around: to.key)
        }
        for (from, to) in changes {
            for (tuple, standing) in from.transits where to.transits[tuple] == nil {
                // The old connection on these ports is gone, or its client would not open another one there.
                if let running = migrations[standing.migration] { advance(running, .reconnecting(tuple)) }
            }
        }
    }

    /// The migrations that wait for this client learn that it is back.
    private func tell(_ tuple: FourTuple, _ session: Session) {
        given[session.id] = EventLoop.now
        // In the queue datapath the SYN passes the queue once more, and is seen there.
        if session.binding?.datapath == .kernel { observeOpening(tuple, session) }
    }

    /// What a SYN that waits is told, once the gateway knows its session.
    private func decision(_ tuple: FourTuple) -> Verdict.Decision {
        let key = SessionKey(client: tuple.source.address, clientPort: tuple.source.port, home: tuple.destination)
        guard let session = sessions[key] else {
            // A port that was left, and meanwhile all of the client's ports are bound: user space carries this one too.
            let wider = sessions[SessionKey(client: key.client, clientPort: nil, home: key.home)]
            return wider?.binding?.datapath == .queue ? .repeat : .accept
        }
        if session.isFollowing { given[session.id] = EventLoop.now }
        // Where an element stands for this very four-tuple, its rule has the next word.
        return session.binding?.datapath == .queue || session.transits[tuple] != nil ? .repeat : .accept
    }

    private func release(_ held: [Observation], _ decision: (FourTuple) -> Verdict.Decision) {
        var released: [UInt16: [(number: UInt32, decision: Verdict.Decision)]] = [:]
        for observation in held {
            guard let packet = observation.held else { continue }
            released[packet.queue, default: []].append((packet.number, decision(observation.segment.tuple)))
        }
        for (queue, packets) in released where Int(queue) < gateway.queues.count {
            // A thread that has been stopped has no packets any more.
            try? gateway.queues[Int(queue)].release(packets)
        }
    }

    // MARK: - Numbers

    /// An order that names its session by number, with the client and the home that the session has now.
    func named(_ order: MigrationOrder) throws(Problem) -> MigrationOrder {
        guard let id = order.session else { return order }
        guard order.client == nil, order.from == nil, order.scope == nil else {
            throw Problem(
                kind: .malformedRequest,
                detail: "A session's number says which client, home and scope: leave those out, or the number.")
        }
        guard let key = sessions.key(of: id) else {
            throw Problem(
                kind: .unknownConnection, detail: "There is no session \(id): list them with \"nfqmigctl sessions\".")
        }
        var order = order
        (order.client, order.from, order.scope) = (key.clientText, "\(key.home)", key.scope.rawValue)
        return order
    }
}

/// Connections as conntrack has them at one moment: looked up one by one, or all of a client's at once when there are
/// many.
private final class ConnectionLookup {
    /// So many look-ups cost what a list of some thousand connections costs.
    private static let most = 32

    private let conntrack: ConntrackTable
    private var known: [FourTuple: ConnectionEntry?] = [:]
    private var listed: Set<IPAddress> = []

    init(_ conntrack: ConntrackTable) { self.conntrack = conntrack }

    func entry(_ original: FourTuple) throws -> ConnectionEntry? {
        if let known = known[original] { return known }
        let client = original.source.address
        if listed.contains(client) { return nil }
        if known.count < Self.most {
            let entry = try conntrack.entry(original: original)
            known[original] = .some(entry)
            return entry
        }
        for entry in try conntrack.entries(client: client) { known[entry.original] = entry }
        listed.insert(client)
        return known[original] ?? nil
    }
}
