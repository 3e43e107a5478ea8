// SPDX-License-Identifier: GPL-3.0-or-later

public import Rewriter
public import Ruleset
public import Wire

/// Who carries the packets of a bound connection.
public enum Datapath: String, Hashable, Sendable, Codable, CaseIterable {
    /// The kernel's NAT; user space sees the first segments of a migration and nothing afterwards.
    case kernel
    /// User space judges the packets, without the kernel's NAT: all of them, or with treatment `mark` those of which the kernel
    /// has not learnt what to write.
    case queue
}

/// How wide a binding is.
public enum Scope: String, Hashable, Sendable, Codable, CaseIterable {
    /// One client endpoint: exactly one connection at a time.
    case connection
    /// One client address, from any port: all its connections to that home, now and later.
    case client
    /// Every client of the home, now and later, except those that have a narrower binding.
    case service
}

/// What names a session: this client's use of this home, or, in scope `service`, everybody's.
public struct SessionKey: Hashable, Sendable {
    /// The client's address, or nil for scope `service`.
    public var client: IPAddress?
    /// The client's port, or nil for scopes `client` and `service`.
    public var clientPort: UInt16?
    /// The endpoint that the client believes it talks to.
    public var home: Endpoint

    public init(client: IPAddress?, clientPort: UInt16?, home: Endpoint) {
        self.client = client
        self.clientPort = client == nil ? nil : clientPort
        self.home = home
    }

    /// In whole words: see `IPAddress.hash(into:)`.
    public func hash(into hasher: inout Hasher) {
        hasher.combine(clientEndpoint)
        hasher.combine(home)
    }

    public var scope: Scope { client == nil ? .service : clientPort == nil ? .client : .connection }

    /// The client's endpoint; port 0 stands for any port, the unspecified address for any client.
    public var clientEndpoint: Endpoint {
        Endpoint(address: client ?? .any(home.address.family), port: clientPort ?? 0)
    }

    /// Client → home, with port 0 where any port of the client is meant, and the unspecified address for any client.
    public var original: FourTuple { FourTuple(source: clientEndpoint, destination: home) }
}

/// The rule that says which host serves a session. A session without one is served by its home.
public struct Binding: Hashable, Sendable {
    public var host: Endpoint
    public var datapath: Datapath
    /// The client's port as the host sees it; nil for its own, and in the kernel datapath also where the kernel chooses it.
    /// Scope `connection` only.
    public var sourcePort: UInt16?

    public init(host: Endpoint, datapath: Datapath, sourcePort: UInt16? = nil) {
        self.host = host
        self.datapath = datapath
        self.sourcePort = sourcePort
    }
}

/// What becomes of the segments of one direction of an old connection.
public enum Transit: Hashable, Sendable {
    /// Stopped and observed; nothing passes.
    case frozen
    /// Stopped and observed until a SYN opens the next connection.
    case awaitingSYN
    /// Answered with a RST by the kernel, for a host that may speak again.
    case guarded
    /// Still carried by user space to the host it had: the end of a connection whose session is served by another one
    /// now. A SYN waits for a decision.
    case trailing
}

/// A transit with the host it concerns and its end.
public struct StandingTransit: Hashable, Sendable {
    public var transit: Transit
    /// The from-host of the migration that made it; a migration back to this host ends it.
    public var host: Endpoint
    /// When it ends by itself: seconds from its installation, as the kernel counts them.
    public var lifetime: UInt32
    /// Which installation this is: a new one of the same tuple starts its lifetime anew.
    public var migration: UInt64
    /// Of a trailing connection: the client's port as the host sees it; nil for its own.
    public var sourcePort: UInt16?

    public init(
        transit: Transit, host: Endpoint, lifetime: UInt32, migration: UInt64, sourcePort: UInt16? = nil
    ) {
        self.transit = transit
        self.host = host
        self.lifetime = lifetime
        self.migration = migration
        self.sourcePort = sourcePort
    }

    /// The element that stops segments with its four-tuple.
    public func element(_ tuple: FourTuple) -> TableElement {
        transit == .guarded ? .guard(tuple) : .divert(tuple)
    }

    /// What the host's reply to a segment from `client` has as its endpoints.
    func reply(to client: Endpoint) -> FourTuple {
        FourTuple(source: host, destination: Endpoint(address: client.address, port: sourcePort ?? client.port))
    }
}

/// Everything the gateway holds for one session, as a value. What belongs into the kernel's table and into the queue
/// threads' flow tables is derived from it, so that every change is the difference of two values, and undoing one is
/// the same difference the other way round.
public struct Session: Hashable, Sendable {
    /// What the session is called as long as it lives: the number of the migration that made it. 0: not numbered.
    public let id: UInt64
    /// Its client's port changes when a session of scope `connection` follows a client that comes back from another one.
    public internal(set) var key: SessionKey
    public var binding: Binding?
    /// Keyed by the four-tuple that the segments carry when they arrive at the gateway.
    public var transits: [FourTuple: StandingTransit]
    /// Reply tuples (host → client) that the kernel has learnt for this session's rewritten connections.
    public var replies: Set<FourTuple>
    /// Whether another session decides about the four-tuple `hostSide`: see `watched`.
    public var yields = false

    public init(key: SessionKey, id: UInt64 = 0, binding: Binding? = nil) {
        self.id = id
        self.key = key
        self.binding = binding
        transits = [:]
        replies = []
    }

    /// Whether nothing is left of this session: home serves it and no transit stands.
    public var isIdle: Bool { binding == nil && transits.isEmpty && replies.isEmpty }

    /// The host that serves the session now.
    public var host: Endpoint { binding?.host ?? key.home }

    /// Client → host as the host has it from a session of scope `connection`: where user space carries it, and where a
    /// controller has stated it. Elsewhere the kernel's NAT chooses.
    public var hostSide: FourTuple? {
        guard let binding, let client = key.client, let port = key.clientPort,
            binding.datapath == .queue || binding.sourcePort != nil
        else { return nil }
        let source = Endpoint(address: client, port: binding.sourcePort ?? port)
        return FourTuple(source: source, destination: binding.host)
    }

    /// Client → home, as home has it, of a session of scope `connection` that home itself serves.
    public var homeSide: FourTuple? { binding == nil && key.scope == .connection ? key.original : nil }

    /// What conntrack has as the original four-tuple of this session's connection: user space translates before conntrack
    /// looks, the kernel's NAT behind it. With port 0 where any port of the client is meant.
    public var tracked: FourTuple {
        guard let binding, binding.datapath == .queue else { return key.original }
        return hostSide ?? FourTuple(source: key.clientEndpoint, destination: binding.host)
    }

    /// The client may open a connection of its own to the host with the very four-tuple that the host has from this
    /// session. Its SYN is held, so that one of the two gets another source port.
    public var watched: FourTuple? { isDirect || yields || binding?.datapath == .kernel ? nil : hostSide }

    /// Whether this is a client's own connection with its home, which has another source port there because a session of the
    /// same client has its own.
    public var isDirect: Bool { binding?.host == key.home }

    /// What this session contributes to our nftables table, with each element's lifetime (nil: for ever).
    public func elements() -> [TableElement: UInt32?] {
        var elements: [TableElement: UInt32?] = [:]
        elements.reserveCapacity(2 * transits.count + replies.count + 4)
        for (tuple, standing) in transits {
            elements[standing.element(tuple)] = .some(standing.lifetime)
            if standing.transit == .guarded { elements[.guarded(tuple.reversed)] = .some(standing.lifetime) }
            elements[.involved(tuple.destination.address)] = .some(nil)
            guard standing.transit == .trailing else { continue }
            elements[.involved(standing.host.address)] = .some(nil)
            elements[.answering(standing.host.address)] = .some(nil)
        }
        forEachLastingElement { elements[$0] = .some(nil) }
        return elements
    }

    /// Calls `body` with what `elements` returns, without making a dictionary where no transit stands.
    public func forEachElement(_ body: (TableElement, _ lifetime: UInt32?) -> Void) {
        if transits.isEmpty {
            forEachLastingElement { body($0, nil) }
        } else {
            for (element, lifetime) in elements() { body(element, lifetime) }
        }
    }

    /// What the binding and the replies contribute. An element that several clients of a service share comes again.
    private func forEachLastingElement(_ body: (TableElement) -> Void) {
        for reply in replies { body(.reply(reply)) }
        guard let binding else { return }
        switch (binding.datapath, key.scope) {
        case (.kernel, .connection):
            body(.connection(key.original, host: binding.host))
            if let port = binding.sourcePort {
                body(.source(key.original, as: Endpoint(address: key.clientEndpoint.address, port: port)))
            }
        case (.kernel, .client): body(.client(key.clientEndpoint.address, home: key.home, host: binding.host))
        case (.kernel, .service): body(.service(home: key.home, host: binding.host))
        case (.queue, .service): body(.divertService(home: key.home))
        case (.queue, .connection): body(.divertConnection(key.original))
        case (.queue, .client): body(.divertClient(client: key.clientEndpoint.address, home: key.home))
        }
        if let watched { body(.divertConnection(watched)) }
        if isFollowing, let client = key.client { body(.credit(client: client, home: key.home)) }
        if binding.datapath == .queue || isFollowing { body(.involved(key.home.address)) }
        guard binding.datapath == .queue else { return }
        // A packet to the host comes back from a queue with the host's address, if user space has written it.
        if binding.host.address != key.home.address { body(.involved(binding.host.address)) }
        body(.answering(binding.host.address))
        body(.icmpHome(key.home.address))
        if let client = key.client {
            body(.icmpPeer(client))
        } else {
            // Of scope `service` the kernel learns them, together with the replies.
            for reply in replies { body(.icmpPeer(reply.destination.address)) }
        }
    }

    /// What this session contributes to the flow table of every queue thread.
    public func flows() -> [FlowKey: FlowRule] {
        var flows: [FlowKey: FlowRule] = [:]
        flows.reserveCapacity(2 * transits.count + 4)
        forEachLastingFlow { flows[$0] = $1 }
        let passage = passage
        for (tuple, standing) in transits {
            let flow = FlowKey(stage: .prerouting, tuple: tuple)
            switch standing.transit {
            case .frozen: flows[flow] = .freeze
            case .awaitingSYN where tuple.destination != key.home: flows[flow] = .awaitSYN(.pass)
            // A port that the session has left is any other port: who opens from there may be owed a connection, or not.
            case .awaitingSYN: flows[flow] = isPresent(tuple) ? .awaitSYN(passage) : .awaitDecision
            case .trailing:
                flows[flow] = .holdSYN(.translateDestination(standing.host, clientPort: standing.sourcePort ?? 0))
                let reply = FlowKey(stage: .postrouting, tuple: standing.reply(to: tuple.source))
                flows[reply] = .passage(
                    .translateSource(key.home, clientPort: standing.sourcePort == nil ? 0 : tuple.source.port))
            case .guarded: break
            }
        }
        return flows
    }

    /// Calls `body` with what `flows` returns, without making a dictionary where no transit stands.
    public func forEachFlow(_ body: (FlowKey, FlowRule) -> Void) {
        if transits.isEmpty {
            forEachLastingFlow(body)
        } else {
            for (key, rule) in flows() { body(key, rule) }
        }
    }

    /// What the binding contributes.
    private func forEachLastingFlow(_ body: (FlowKey, FlowRule) -> Void) {
        if isFollowing { body(FlowKey(stage: .prerouting, tuple: key.original).anyPort, .holdSYN(.pass)) }
        // A wider binding may bring this session's packets into a queue, which they pass as they are.
        guard let binding, binding.datapath == .queue || key.scope != .service else { return }
        body(FlowKey(stage: .prerouting, tuple: key.original), .passage(passage))
        guard binding.datapath == .queue else { return }
        let clientPort = binding.sourcePort == nil ? 0 : key.clientPort ?? 0
        body(
            FlowKey(stage: .postrouting, tuple: reply(from: binding.host)),
            .passage(.translateSource(key.home, clientPort: clientPort)))
        if let watched { body(FlowKey(stage: .prerouting, tuple: watched), .holdSYN(.pass)) }
    }

    /// How the client's segments pass user space, when they come there.
    private var passage: Passage {
        guard let binding, binding.datapath == .queue else { return .pass }
        return .translateDestination(binding.host, clientPort: binding.sourcePort ?? 0)
    }

    /// What the replies of this session's connections have as endpoints; with port 0 where any port of the client is meant, and
    /// the unspecified address for any client.
    private func reply(from host: Endpoint) -> FourTuple {
        hostSide?.reversed ?? FourTuple(source: host, destination: key.clientEndpoint)
    }

    /// The from-host's transits that would stop the host `host` from serving this session.
    public func transits(against host: Endpoint) -> [FourTuple] {
        transits.filter { $0.key.source == host || $0.value.host == host && $0.key.source.address == host.address }
            .map(\.key)
    }
}

/// The difference between two states of a session, in the form the kernel table and the queue threads take it.
public struct SessionChange: Sendable {
    /// Elements to remove from the table, then elements to add, in one transaction.
    public var removedElements: [TableElement] = []
    public var addedElements: [(element: TableElement, lifetime: UInt32?)] = []
    /// Flow rules to set before the transaction.
    public var setFlows: [(key: FlowKey, rule: FlowRule)] = []
    /// Flow rules to remove after it.
    public var removedFlows: [FlowKey] = []
    /// Four-tuples client → home that another host serves from now on, or in another way: what user space has said about their
    /// packets before holds no longer.
    public var turned: Set<FourTuple> = []
    /// Homes with a binding of many connections of which the same is true. Some of these nobody may have located.
    public var turnedHomes: Set<IPAddress> = []

    init() {}

    public init(from old: Session, to new: Session) {
        var (old, new) = (old, new)
        // From replies that stay as they are nothing follows, and there may be tens of thousands.
        if old.replies == new.replies, old.binding == new.binding {
            old.replies = []
            new.replies = []
        }
        let before = old.elements()
        let after = new.elements()
        // An element whose lifetime starts anew is removed and added.
        let renewed = Set(
            new.transits.filter { old.transits[$0.key].map { $0.migration } != $0.value.migration }.map(\.key))
        for (element, lifetime) in before where after[element] != .some(lifetime) || element.isTransit(of: renewed) {
            removedElements.append(element)
        }
        for (element, lifetime) in after where before[element] != .some(lifetime) || element.isTransit(of: renewed) {
            addedElements.append((element, lifetime))
        }
        let oldFlows = old.flows()
        let newFlows = new.flows()
        for (key, rule) in newFlows where oldFlows[key] != rule { setFlows.append((key, rule)) }
        for key in oldFlows.keys where newFlows[key] == nil { removedFlows.append(key) }
        guard old.binding != new.binding else {
            // Nor does the client's direction without its reply: who speaks next is judged, and learnt from.
            guard new.key.scope != .connection, old.replies != new.replies else { return }
            for reply in old.replies.subtracting(new.replies) {
                turned.insert(FourTuple(source: reply.destination, destination: new.key.home))
            }
            return
        }
        for key in [old.key, new.key] {
            if key.scope == .connection { turned.insert(key.original) } else { turnedHomes.insert(key.home.address) }
        }
    }

    /// Several changes of different sessions, made as one.
    public init(joining changes: [SessionChange]) {
        removedElements = changes.flatMap(\.removedElements)
        addedElements = changes.flatMap(\.addedElements)
        setFlows = changes.flatMap(\.setFlows)
        // What one session leaves, another may have taken.
        let taken = Set(setFlows.map(\.key))
        removedFlows = changes.flatMap(\.removedFlows).filter { !taken.contains($0) }
        for change in changes {
            turned.formUnion(change.turned)
            turnedHomes.formUnion(change.turnedHomes)
        }
    }

    public var isEmpty: Bool {
        removedElements.isEmpty && addedElements.isEmpty && setFlows.isEmpty && removedFlows.isEmpty
    }
}

extension TableElement {
    /// Whether this element stands for one of these transits.
    fileprivate func isTransit(of tuples: Set<FourTuple>) -> Bool {
        switch self {
        case .divert(let tuple), .guard(let tuple): tuples.contains(tuple)
        case .guarded(let tuple): tuples.contains(tuple.reversed)
        default: false
        }
    }
}
