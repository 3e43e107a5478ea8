// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// What must happen next in one migration, given what has happened. Opens no socket, reads no clock.
///
///     requested ─► locating ─► preparing ─► checking ─► locating again ─► placing ─► switching ─► forgetting │ resetting ─► finished
///         │            │           │            │              │             │           │                   │  (standing guard)
///         └────────────┴───────────┴────────────┴──────────────┴─────────────┴───────────┴─► failed          └ the point of no return
///
/// Everything before the point of no return can be taken back without a trace, and is, when a step fails. The
/// conntrack entry is the last thing to hold the old translation: once it is forgotten the old connection cannot go on.
public struct MigrationMachine: Sendable {
    /// What has happened. Times are nanoseconds of one monotonic clock.
    public enum Event: Sendable {
        case requested
        case located([LocatedConnection])
        /// What had to be prepared is; with another to-host, if the preparation has chosen one.
        case prepared(to: Endpoint?)
        case prepareFailed(reason: String)
        case checked(HostCheck)
        case placed(Placement)
        case placeFailed(MigrationFailure)
        case installed
        case installFailed(reason: String)
        case forgotten
        case serverReset(LocatedConnection, ResetResult)
        case clientReset(LocatedConnection, ResetResult)
        /// A SYN of the client on its way to the session's new host.
        case reconnecting(FourTuple)
        /// The new connection is established, as conntrack sees it.
        case established(FourTuple)
        case deadlinePassed
        case superseded
        /// The policy does not allow it.
        case refused(PolicyRefusal)
    }

    /// What the daemon must do now.
    public enum Effect: Sendable {
        /// Find the session's connections in conntrack.
        case locate
        /// Have the to-host prepared: started, given the state it needs.
        case prepare
        /// See which of these endpoints of the to-host accept TCP connections.
        case check([Endpoint])
        /// Choose one of these endpoints of the to-host (none: home), and the source port that it is to see.
        case place([Endpoint], [LocatedConnection])
        /// Bring the gateway from the first state of the session to the second: flow rules, then the table.
        case install(from: Session, to: Session)
        /// Delete the conntrack entries of these connections.
        case forget([LocatedConnection])
        /// Begin the reset handshakes towards the from-host and, unless the client is left alone, the client.
        case reset([LocatedConnection], client: Bool)
        /// Nothing more is to be sent to the client of this connection.
        case leaveClientAlone(LocatedConnection)
        case finish(MigrationOutcome)
    }

    /// The answer of the to-host to connection attempts.
    public enum HostCheck: Hashable, Sendable {
        /// These endpoints have accepted one; at least one of those that were to be asked.
        case listening([Endpoint])
        case failed(reason: String)
    }

    /// How one reset handshake ended.
    public enum ResetResult: String, Hashable, Sendable, Codable {
        case proven, unproven, reconnected
        /// A client that had closed its end already: nothing is sent to it unless it speaks.
        case leaving
    }

    /// How long things stand, in seconds.
    public struct Lifetimes: Hashable, Sendable {
        /// How long the kernel answers a from-host whose reset is proven.
        public var guardProven: UInt32 = 60
        /// How long the kernel answers a from-host whose reset is not proven.
        public var guardUnproven: UInt32 = 86_400
        /// How long segments of the client's old connection are stopped and answered.
        public var guardClient: UInt32 = 120
        /// How long a client that was left alone may stay silent.
        public var passive: UInt32 = 86_400
        /// How long a migration waits for the client's new connection before it reports without it.
        public var reconnect: UInt32 = 3

        public init() {}
    }

    private enum State: Sendable {
        case idle, locating, preparing, checking, locatingAgain, placing, switching, forgetting, resetting, finished
    }

    public let id: UInt64
    public private(set) var request: MigrationRequest
    public let lifetimes: Lifetimes
    /// The session as it is to be on the gateway, now.
    public private(set) var session: Session
    /// The host that served the session before, as the servers' side of the wire names it where that is known.
    public private(set) var fromHost: Endpoint
    public private(set) var connections: [LocatedConnection] = []
    public private(set) var outcome: MigrationOutcome?
    /// New connections of the client seen so far.
    public private(set) var reconnected: Set<FourTuple> = []
    public private(set) var established: Set<FourTuple> = []
    /// When `deadlinePassed` is wanted, in nanoseconds of the caller's clock.
    public private(set) var deadline: UInt64?

    private var state = State.idle
    private var serverResults: [LocatedConnection: ResetResult] = [:]
    private var clientResults: [LocatedConnection: ResetResult] = [:]

    public init(id: UInt64, request: MigrationRequest, session: Session, lifetimes: Lifetimes) {
        self.id = id
        self.request = request
        self.session = session
        self.lifetimes = lifetimes
        fromHost = session.host
    }

    /// Takes up a migration that an earlier process brought past the point of no return: the resets begin again.
    public mutating func resume(_ connections: [LocatedConnection], fromHost: Endpoint, at now: UInt64) -> [Effect] {
        self.connections = connections
        self.fromHost = fromHost
        state = .resetting
        return beginResets(at: now)
    }

    /// Whether the gateway has been changed and the change has not been taken back.
    public var isSwitched: Bool {
        switch state {
        case .forgetting, .resetting: true
        case .finished:
            switch outcome {
            case .proven, .unproven, .superseded: true
            case .failed, nil: false
            }
        case .idle, .locating, .preparing, .checking, .locatingAgain, .placing, .switching: false
        }
    }

    public var isFinished: Bool { outcome != nil }

    public func serverResult(_ connection: LocatedConnection) -> ResetResult? { serverResults[connection] }
    public func clientResult(_ connection: LocatedConnection) -> ResetResult? { clientResults[connection] }

    /// Takes an event and says what follows from it. An event that has no meaning in the present state is ignored.
    public mutating func handle(_ event: Event, at now: UInt64) -> [Effect] {
        switch (state, event) {
        case (.idle, .requested):
            state = .locating
            return [.locate]
        case (.locating, .located(let connections)):
            return located(connections)
        case (.locating, .installFailed(let reason)), (.locatingAgain, .installFailed(let reason)):
            return fail(.kernelRefused(request.session, reason: reason))
        case (.idle, .refused(let refusal)):
            return fail(.refused(refusal))
        case (.preparing, .prepared(let chosen)):
            return prepared(chosen)
        case (.preparing, .prepareFailed(let reason)):
            return fail(.notPrepared(request.session, reason: reason))
        case (.checking, .checked(.listening(let hosts))):
            // The check takes its time, and the client may have opened connections meanwhile.
            if !request.candidates.isEmpty { request.candidates = hosts }
            state = .locatingAgain
            return [.locate]
        case (.locatingAgain, .located(let connections)):
            return locatedAgain(connections)
        case (.checking, .checked(.failed(let reason))):
            return fail(.hostNotListening(request.to ?? request.session.home, reason: reason))
        case (.placing, .placed(let placement)):
            return switchOver(to: placement)
        case (.placing, .placeFailed(let failure)):
            return fail(failure)
        case (.switching, .installed):
            state = .forgetting
            return [.forget(connections)]
        case (.switching, .installFailed(let reason)):
            return fail(.kernelRefused(request.session, reason: reason))
        case (.forgetting, .forgotten):
            state = .resetting
            let frozen = session
            for connection in connections { release(connection) }
            return [.install(from: frozen, to: session)] + beginResets(at: now)
        case (.resetting, _), (.finished, _):
            return whileStanding(event, at: now)
        case (.locating, .superseded), (.preparing, .superseded), (.checking, .superseded),
            (.locatingAgain, .superseded), (.placing, .superseded), (.idle, .superseded):
            return fail(.superseded(request.session))
        default:
            return []
        }
    }

    // MARK: - Before the point of no return

    private mutating func located(_ found: [LocatedConnection]) -> [Effect] {
        connections = found
        if let first = found.first { fromHost = first.serverSide.destination }
        if isUnknown { return fail(.unknownConnection(request.session)) }
        let served = session.binding?.host ?? fromHost
        let isThere = request.to == nil ? session.binding == nil || session.isDirect : request.hosts.contains(served)
        if isThere { return fail(.alreadyThere(request.session, host: served)) }
        if request.prepares {
            state = .preparing
            return [.prepare]
        }
        guard request.checksHost, request.to != nil else { return place() }
        state = .checking
        return [.check(request.hosts)]
    }

    /// The preparation takes its time too: what it was made for is looked at again.
    private mutating func prepared(_ chosen: Endpoint?) -> [Effect] {
        if let chosen {
            request.to = chosen
            request.candidates = []
            if chosen == (session.binding?.host ?? fromHost) {
                return fail(.alreadyThere(request.session, host: chosen))
            }
        }
        guard request.checksHost, request.to != nil else {
            state = .locatingAgain
            return [.locate]
        }
        state = .checking
        return [.check(request.hosts)]
    }

    private mutating func locatedAgain(_ found: [LocatedConnection]) -> [Effect] {
        connections = found
        if let first = found.first { fromHost = first.serverSide.destination }
        if isUnknown { return fail(.unknownConnection(request.session)) }
        return place()
    }

    private mutating func place() -> [Effect] {
        state = .placing
        return [.place(request.hosts, connections)]
    }

    /// Whether there is nothing to move. A whole service may be bound before its first client comes.
    private var isUnknown: Bool {
        connections.isEmpty && session.binding == nil && session.key.scope != .service
    }

    /// One transaction: binding and transits in both directions, and whatever stood against the new host goes.
    private mutating func switchOver(to placement: Placement) -> [Effect] {
        state = .switching
        let before = session
        let leaving = session.host
        if request.to == nil {
            // A home that sees another session's connection in the client's name sees this one under another port.
            session.binding = placement.sourcePort.map {
                Binding(host: placement.host, datapath: .queue, sourcePort: $0)
            }
        } else {
            request.to = placement.host
            request.candidates = []
            request.datapath = placement.datapath ?? request.datapath
            session.binding = Binding(
                host: placement.host, datapath: request.datapath, sourcePort: placement.sourcePort)
        }
        session.yields = placement.yields
        for index in connections.indices {
            connections[index].probePort = placement.probePorts[connections[index].clientSide]
        }
        for tuple in session.transits(against: request.to ?? request.session.home) { session.transits[tuple] = nil }
        let trailing = session.trailingReplies
        session.replies = session.replies.filter { $0.source != leaving || trailing.contains($0) }
        for connection in connections {
            let toClient = StandingTransit(
                transit: .frozen, host: connection.serverSide.destination, lifetime: lifetimes.guardUnproven,
                migration: id)
            var toServer = toClient
            toServer.lifetime = request.passive ? lifetimes.passive : lifetimes.guardClient
            session.transits[connection.serverSide.reversed] = toClient
            session.transits[connection.clientSide] = toServer
        }
        return [.install(from: before, to: session)]
    }

    /// From now on a SYN on the client's side opens the next connection. In passive mode the to-host's answers to what
    /// the client still sends are stopped too: they are passed on in the home's name.
    private mutating func release(_ connection: LocatedConnection) {
        session.transits[connection.clientSide]?.transit = .awaitingSYN
        guard request.passive, let probe = passiveProbe(for: connection) else { return }
        session.transits[probe.reversed] = StandingTransit(
            transit: .awaitingSYN, host: fromHost, lifetime: lifetimes.passive, migration: id)
    }

    /// In passive mode: the tuple in which the client's next segment is shown to the to-host.
    public func passiveProbe(for connection: LocatedConnection) -> FourTuple? {
        guard request.passive else { return nil }
        var source = connection.serverSide.source
        source.port = connection.probePort ?? source.port
        return FourTuple(source: source, destination: request.to ?? session.key.home)
    }

    private mutating func fail(_ failure: MigrationFailure) -> [Effect] {
        state = .finished
        outcome = .failed(failure)
        deadline = nil
        return [.finish(.failed(failure))]
    }

    // MARK: - After it

    private mutating func beginResets(at now: UInt64) -> [Effect] {
        if connections.isEmpty { return conclude(at: now) }
        for connection in connections where connection.phase == .leaving { clientResults[connection] = .leaving }
        return [.reset(connections, client: !request.passive)]
    }

    private mutating func whileStanding(_ event: Event, at now: UInt64) -> [Effect] {
        var effects: [Effect] = []
        switch event {
        case .serverReset(let connection, let result):
            guard serverResults[connection] != .proven else { break }
            serverResults[connection] = result
            effects += stand(guardOver: connection, result)
            if outcome == .unproven, serverResults.values.allSatisfy({ $0 == .proven }) { outcome = .proven }
        case .clientReset(let connection, let result):
            if clientResults[connection] == nil || clientResults[connection] == .unproven {
                clientResults[connection] = result
            }
            if request.passive { effects += endWaiting(for: connection) }
        case .reconnecting(let tuple):
            reconnected.insert(tuple)
            if let old = connections.first(where: { $0.clientSide == tuple }) {
                clientResults[old] = .reconnected
                effects.append(.leaveClientAlone(old))
                effects += openWay(of: old)
            }
        case .established(let tuple):
            established.insert(tuple)
            reconnected.insert(tuple)
            // As many new connections as there were old ones: the client is back, from whatever ports.
            if established.count >= expected {
                for old in connections where clientResults[old] == nil { clientResults[old] = .reconnected }
            }
        case .deadlinePassed:
            deadline = nil
        case .superseded:
            // What stands goes on standing; the report says so.
            if outcome == nil {
                outcome = .superseded
                state = .finished
                deadline = nil
                effects.append(.finish(.superseded))
            }
            return effects
        default:
            return []
        }
        return effects + conclude(at: now)
    }

    /// The daemon's view of the session after others have changed it (a later migration, an expired transit).
    public mutating func adopt(_ session: Session) { self.session = session }

    /// The session has followed its client to another port.
    public mutating func follow(_ session: Session) {
        request.session = session.key
        self.session = session
    }

    /// The from-host has answered, or has had its time: the kernel stands guard from here.
    private mutating func stand(guardOver connection: LocatedConnection, _ result: ResetResult) -> [Effect] {
        let tuple = connection.serverSide.reversed
        guard let standing = session.transits[tuple], standing.migration == id, result == .proven else { return [] }
        let before = session
        session.transits[tuple] = StandingTransit(
            transit: .guarded, host: fromHost, lifetime: lifetimes.guardProven, migration: id)
        return [.install(from: before, to: session)]
    }

    /// The client's next connection has begun on the old one's ports: its segments are the kernel's (or the flow
    /// table's) business from now on.
    private mutating func openWay(of connection: LocatedConnection) -> [Effect] {
        let before = session
        for tuple in [connection.clientSide, passiveProbe(for: connection)?.reversed].compactMap({ $0 })
        where session.transits[tuple]?.migration == id {
            session.transits[tuple] = nil
        }
        return before == session ? [] : [.install(from: before, to: session)]
    }

    /// A client that was left alone has spoken and been answered: what stands for it ends soon.
    private mutating func endWaiting(for connection: LocatedConnection) -> [Effect] {
        let before = session
        for tuple in [connection.clientSide, passiveProbe(for: connection)?.reversed].compactMap({ $0 })
        where session.transits[tuple]?.migration == id {
            session.transits[tuple]?.lifetime = lifetimes.guardClient
        }
        return before == session ? [] : [.install(from: before, to: session)]
    }

    /// Finishes when both ends have answered and the client is back, or has had its time.
    private mutating func conclude(at now: UInt64) -> [Effect] {
        guard outcome == nil, state == .resetting else { return [] }
        guard connections.allSatisfy({ serverResults[$0] != nil }) else { return [] }
        let clientsDone = request.passive || connections.allSatisfy { clientResults[$0] != nil }
        let back = request.passive || established.count >= expected
        if clientsDone && !back, deadline == nil, !waited {
            waited = true
            deadline = now + UInt64(lifetimes.reconnect) * 1_000_000_000
        }
        guard clientsDone, back || (waited && deadline == nil) else { return [] }
        state = .finished
        deadline = nil
        let result: MigrationOutcome =
            connections.allSatisfy { serverResults[$0] == .proven } ? .proven : .unproven
        outcome = result
        return standUnprovenGuards() + [.finish(result)]
    }

    /// As many new connections as old ones whose client had not closed them are awaited.
    private var expected: Int { connections.count { $0.phase != .leaving } }

    /// Whether the time for the client's return has been granted.
    private var waited = false

    /// Hosts that have not answered are the kernel's to answer from now on, without user space.
    private mutating func standUnprovenGuards() -> [Effect] {
        let before = session
        for connection in connections where serverResults[connection] != .proven {
            let tuple = connection.serverSide.reversed
            guard let standing = session.transits[tuple], standing.migration == id else { continue }
            session.transits[tuple] = StandingTransit(
                transit: .guarded, host: fromHost, lifetime: standing.lifetime, migration: id)
        }
        return before == session ? [] : [.install(from: before, to: session)]
    }
}
