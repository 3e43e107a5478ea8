// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// What a controller asks for: this session, to that host.
public struct MigrationRequest: Hashable, Sendable {
    public var session: SessionKey
    /// The to-host, or nil for home. Of several candidates the first, until one is chosen.
    public var to: Endpoint?
    /// Endpoints of the to-host of which one is to be chosen, when it has offered a range of ports; empty otherwise.
    public var candidates: [Endpoint] = []
    /// The client's port as the to-host is to see it, where the controller has stated the translation.
    public var sourcePort: UInt16?
    /// Who carries the session's packets afterwards. Without meaning for a migration home.
    public var datapath: Datapath
    /// Whether the client is left alone until it speaks.
    public var passive: Bool
    /// Whether the to-host is asked for a TCP connection first.
    public var checksHost: Bool
    /// Whether something has to be prepared on the to-host before it is asked for a connection.
    public var prepares = false
    /// When the migration ends by itself; nil for never.
    public var lifetime: RequestedLifetime?

    public init(session: SessionKey, to: Endpoint?, datapath: Datapath, passive: Bool, checksHost: Bool = true) {
        self.session = session
        self.to = to
        self.datapath = datapath
        self.passive = passive
        self.checksHost = checksHost
    }
}

extension MigrationRequest {
    /// The to-host as it is told to others: `home`, an endpoint, or an address with the ports of which one is chosen.
    public var destinationText: String {
        guard let to else { return "home" }
        guard candidates.count > 1, let last = candidates.last else { return "\(to)" }
        return "\(to)-\(last.port)"
    }

    /// Every endpoint that the to-host may turn out to be; empty for home.
    public var hosts: [Endpoint] { candidates.isEmpty ? to.map { [$0] } ?? [] : candidates }
}

/// What is known of a TCP connection's state before it is moved (RFC 9293 section 3.3.2, as conntrack follows it).
public enum ConnectionPhase: String, Hashable, Sendable, Codable {
    /// The client's SYN has been seen, and no answer to it.
    case opening
    /// The host's SYN-ACK has been seen, and no answer to it.
    case halfOpen
    case established
    /// A FIN has been seen, the host's first.
    case closing
    /// The client has sent its FIN, before the host: it is leaving.
    case leaving
    case closed
}

/// A connection of the session, found in what crosses the gateway.
public struct LocatedConnection: Hashable, Sendable {
    /// Client → home, as on the wire on the client's side.
    public var clientSide: FourTuple
    /// Client → from-host, as on the wire on the servers' side: after everybody's NAT.
    public var serverSide: FourTuple
    public var phase: ConnectionPhase
    /// In passive mode: the port from which the client's next segment is shown to the to-host; nil for the one of `serverSide`,
    /// which another connection may have there.
    public var probePort: UInt16?

    public init(clientSide: FourTuple, serverSide: FourTuple, phase: ConnectionPhase) {
        self.clientSide = clientSide
        self.serverSide = serverSide
        self.phase = phase
    }

    /// What the client calls it tells it from any other there is at the same time.
    public func hash(into hasher: inout Hasher) { hasher.combine(clientSide) }
}

/// Why a migration did not take place. Nothing of it is on the network.
public enum MigrationFailure: Error, Hashable, Sendable {
    /// No such connection crosses the gateway, and no such session is bound.
    case unknownConnection(SessionKey)
    /// The session is served by the to-host already.
    case alreadyThere(SessionKey, host: Endpoint)
    /// Client, home and to-host are not all of one address family.
    case mixedFamilies(SessionKey, host: Endpoint)
    /// An address that no session can have.
    case unusableAddress(IPAddress)
    /// A wider or narrower binding of the same client and home stands in the way.
    case otherScopeBound(SessionKey, existing: Scope)
    /// In the queue datapath a reply does not tell which of two homes it is for.
    case hostServesOtherHome(SessionKey, host: Endpoint, other: Endpoint)
    /// The stated translation would give two connections of the host the same four-tuple (client → host).
    case sourcePortTaken(SessionKey, FourTuple)
    /// A client has a connection of its own with the to-host that, in the queue datapath, a wider binding than one of scope
    /// `connection` could not be told from.
    case ownConnection(SessionKey, FourTuple)
    /// Every port that could stand in for the client's has a connection with that host.
    case noSourcePort(SessionKey, host: Endpoint)
    /// The to-host does not accept connections.
    case hostNotListening(Endpoint, reason: String)
    /// The kernel refused a change; what had been changed was taken back.
    case kernelRefused(SessionKey, reason: String)
    /// A newer migration of the same session took over before anything was changed.
    case superseded(SessionKey)
    /// The daemon stopped, or started anew, before anything was changed for good.
    case interrupted(SessionKey)
    /// The policy does not allow it, or not now.
    case refused(PolicyRefusal)
    /// What had to be done before the switch was not done.
    case notPrepared(SessionKey, reason: String)
}

extension SessionKey: CustomStringConvertible {
    public var description: String {
        switch scope {
        case .connection: "the connection \(clientEndpoint) to \(home)"
        case .client: "the connections of \(clientEndpoint.address) to \(home)"
        case .service: "the connections of all clients to \(home)"
        }
    }
}

extension MigrationFailure: CustomStringConvertible {
    public var description: String {
        switch self {
        case .unknownConnection(let key):
            "Nothing is known of \(key): list what crosses this gateway with \"nfqmigctl connections\"."
        case .alreadyThere(let key, let host):
            "\(host) already serves \(key): name another to-host."
        case .mixedFamilies(let key, let host):
            "\(host) is not of the address family of \(key): name a to-host of the same family."
        case .unusableAddress(let address):
            "\(address) is not a unicast address: no session can have it."
        case .otherScopeBound(let key, let existing):
            "A binding of scope \(existing.rawValue) already covers \(key): return it home first, or migrate that one."
        case .hostServesOtherHome(let key, let host, let other):
            "\(host) already serves \(key.client.map { "\($0)" } ?? "clients") for \(other) in the queue datapath, which cannot tell the two apart: use "
                + "--datapath kernel, or another port of that host."
        case .sourcePortTaken(let key, let tuple):
            "\(tuple.source) has another connection with \(tuple.destination), so the stated translation of \(key) is not "
                + "possible: state another source port."
        case .ownConnection(let key, let tuple):
            "\(tuple.source) has a connection of its own with \(tuple.destination), which the queue datapath cannot tell from "
                + "\(key): use --datapath kernel, or another port of that host."
        case .noSourcePort(let key, let host):
            "No source port is free for \(key) at \(host): name another port of that host, or another host."
        case .hostNotListening(let host, let reason):
            "The to-host \(host) does not accept connections (\(reason)): start the service there first."
        case .kernelRefused(let key, let reason):
            "The kernel refused the change for \(key), which is as it was: \(reason)"
        case .superseded(let key):
            "A newer migration of \(key) took over: ask for that one's outcome."
        case .interrupted(let key):
            "The daemon stopped before anything was changed for \(key): ask again."
        case .refused(let refusal):
            "\(refusal)"
        case .notPrepared(let key, let reason):
            "Nothing was changed for \(key), because its prepare hook failed: \(reason)."
        }
    }
}

/// How a migration ended.
public enum MigrationOutcome: Hashable, Sendable {
    /// Done; every old connection is proven gone from the from-host.
    case proven
    /// Done; the from-host did not prove that it has dropped the old connection. The guard stands.
    case unproven
    /// Switched, and then overtaken by a newer migration of the same session. What it had begun goes on.
    case superseded
    /// Not done.
    case failed(MigrationFailure)
}
