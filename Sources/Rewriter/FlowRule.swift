// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// The netfilter hook at which a packet was queued.
@frozen
public enum Stage: UInt8, Hashable, Sendable, CaseIterable {
    /// Before conntrack and routing: segments of clients, and of hosts whose connection is in transit.
    case prerouting
    /// After conntrack: replies of rewritten connections, still with the host's endpoint as source.
    case postrouting
}

/// What names a flow in the table: the four-tuple as it is on the wire at that stage.
///
/// Port 0 on the client's side stands for any port of that address (scope `client`): the source's port in prerouting,
/// the destination's in postrouting. The unspecified address with port 0 stands for every client (scope `service`).
@frozen
public struct FlowKey: Hashable, Sendable {
    public var stage: Stage
    public var tuple: FourTuple

    @inlinable
    public init(stage: Stage, tuple: FourTuple) {
        self.stage = stage
        self.tuple = tuple
    }

    /// The key that covers this flow together with the client's other ports.
    @inlinable @inline(__always)
    public var anyPort: FlowKey {
        var key = self
        switch stage {
        case .prerouting: key.tuple.source.port = 0
        case .postrouting: key.tuple.destination.port = 0
        }
        return key
    }

    /// The key that covers this flow together with those of all other clients.
    @inlinable @inline(__always)
    public var anyClient: FlowKey {
        var key = self
        switch stage {
        case .prerouting: key.tuple.source = Endpoint(address: .any(tuple.source.address.family), port: 0)
        case .postrouting: key.tuple.destination = Endpoint(address: .any(tuple.destination.address.family), port: 0)
        }
        return key
    }
}

/// How a packet passes.
@frozen
public enum Passage: Hashable, Sendable {
    /// Unchanged.
    case pass
    /// To another endpoint: from the client to the host that serves the session. `clientPort`: the source port that the
    /// host sees; 0 for the client's own.
    case translateDestination(Endpoint, clientPort: UInt16 = 0)
    /// In another endpoint's name: from the serving host to the client, with the home as source. `clientPort`: the client's
    /// own port; 0 where the host sees that.
    case translateSource(Endpoint, clientPort: UInt16 = 0)
}

/// What becomes of the segments of one flow.
@frozen
public enum FlowRule: Hashable, Sendable {
    /// Nothing passes; what comes is dropped and observed.
    case freeze
    /// Segments of the old connection are dropped and observed; a SYN, or a SYN-ACK where the rule is about a host, is
    /// observed, turns the rule into `reconnected` and passes by it.
    case awaitSYN(Passage)
    /// The next connection has begun: everything passes.
    case reconnected(Passage)
    /// A SYN is held until the control plane has said where its connection goes; everything else passes.
    case holdSYN(Passage)
    /// Segments of the old connection are dropped and observed; a SYN is held until the control plane has said where its
    /// connection goes.
    case awaitDecision
    /// Everything passes; a SYN to a translated destination is observed.
    case passage(Passage)
}
