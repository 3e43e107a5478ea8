// SPDX-License-Identifier: GPL-3.0-or-later

public import Rewriter
public import Ruleset
public import Wire

/// Who carries the packets of a bound connection.
public enum Datapath: String, Hashable, Sendable, Codable, CaseIterable {
    /// The kernel's NAT; user space sees the first segments of a migration and nothing afterwards.
    case kernel
    /// Every packet passes user space, which rewrites addresses and ports itself.
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

    public init(host: Endpoint, datapath: Datapath) {
        self.host = host
        self.datapath = datapath
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

    public init(transit: Transit, host: Endpoint, lifetime: UInt32, migration: UInt64) {
        self.transit = transit
        self.host = host
        self.lifetime = lifetime
        self.migration = migration
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

    /// What this session contributes to our nftables table, with each element's lifetime (nil: for ever).
    public func elements() -> [TableElement: UInt32?] {
        var elements: [TableElement: UInt32?] = [:]
        for (tuple, standing) in transits {
            switch standing.transit {
            case .frozen, .awaitingSYN, .trailing:
                elements[.divert(tuple, .queue)] = .some(standing.lifetime)
            case .guarded:
                elements[.divert(tuple, .guard)] = .some(standing.lifetime)
                elements[.guarded(tuple.reversed)] = .some(standing.lifetime)
            }
        }
        for reply in replies { elements[.reply(reply)] = .some(nil) }
        guard let binding else { return elements }
        switch (binding.datapath, key.scope) {
        case (.kernel, .connection): elements[.connection(key.original, host: binding.host)] = .some(nil)
        case (.kernel, .client):
            elements[.client(key.clientEndpoint.address, home: key.home, host: binding.host)] = .some(nil)
        case (.kernel, .service): elements[.service(home: key.home, host: binding.host)] = .some(nil)
        case (.queue, .service): elements[.divertService(home: key.home)] = .some(nil)
        case (.queue, .connection): elements[.divert(key.original, .queue)] = .some(nil)
        case (.queue, .client):
            elements[.divertClient(client: key.clientEndpoint.address, home: key.home)] = .some(nil)
        }
        if key.scope == .connection, let client = key.client {
            elements[.credit(client: client, home: key.home)] = .some(nil)
        }
        if binding.datapath == .queue {
            elements[.icmpHome(key.home.address)] = .some(nil)
            // Of scope `service` the kernel learns them, together with the replies.
            for client in key.client.map({ [$0] }) ?? replies.map(\.destination.address) {
                elements[.icmpPeer(client)] = .some(nil)
            }
        }
        return elements
    }

    /// What this session contributes to the flow table of every queue thread.
    public func flows() -> [FlowKey: FlowRule] {
        var flows: [FlowKey: FlowRule] = [:]
        if binding != nil, key.scope == .connection {
            flows[FlowKey(stage: .prerouting, tuple: key.original).anyPort] = .holdSYN(.pass)
        }
        let passage: Passage
        if let binding, binding.datapath == .queue {
            passage = .translateDestination(binding.host)
            flows[FlowKey(stage: .prerouting, tuple: key.original)] = .passage(passage)
            let reply = FourTuple(source: binding.host, destination: key.clientEndpoint)
            flows[FlowKey(stage: .postrouting, tuple: reply)] = .passage(.translateSource(key.home))
        } else {
            passage = .pass
            // A wider binding may bring this session's packets into a queue, which they pass as they are.
            if binding != nil, key.scope != .service {
                flows[FlowKey(stage: .prerouting, tuple: key.original)] = .passage(.pass)
            }
        }
        for (tuple, standing) in transits {
            let flow = FlowKey(stage: .prerouting, tuple: tuple)
            switch standing.transit {
            case .frozen: flows[flow] = .freeze
            case .awaitingSYN where tuple.destination != key.home: flows[flow] = .awaitSYN(.pass)
            // A port that the session has left is any other port: who opens from there may be owed a connection, or not.
            case .awaitingSYN: flows[flow] = isPresent(tuple) ? .awaitSYN(passage) : .awaitDecision
            case .trailing:
                flows[flow] = .holdSYN(.translateDestination(standing.host))
                let reply = FlowKey(
                    stage: .postrouting, tuple: FourTuple(source: standing.host, destination: tuple.source))
                flows[reply] = .passage(.translateSource(key.home))
            case .guarded: break
            }
        }
        return flows
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

    init() {}

    public init(from old: Session, to new: Session) {
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
    }

    /// Several changes of different sessions, made as one.
    public init(joining changes: [SessionChange]) {
        removedElements = changes.flatMap(\.removedElements)
        addedElements = changes.flatMap(\.addedElements)
        setFlows = changes.flatMap(\.setFlows)
        removedFlows = changes.flatMap(\.removedFlows)
    }

    public var isEmpty: Bool {
        removedElements.isEmpty && addedElements.isEmpty && setFlows.isEmpty && removedFlows.isEmpty
    }
}

extension TableElement {
    /// Whether this element stands for one of these transits.
    fileprivate func isTransit(of tuples: Set<FourTuple>) -> Bool {
        switch self {
        case .divert(let tuple, _): tuples.contains(tuple)
        case .guarded(let tuple): tuples.contains(tuple.reversed)
        default: false
        }
    }
}
