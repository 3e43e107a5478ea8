// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

// Of several bindings that cover a connection the narrowest counts: connection, client, service.
extension SessionKey {
    /// The keys of the sessions that may hold a client's segment (client → home), narrowest first.
    public static func covering(_ tuple: FourTuple) -> CoveringKeys {
        CoveringKeys(
            narrowest: SessionKey(
                client: tuple.source.address, clientPort: tuple.source.port, home: tuple.destination))
    }

    /// The key of the next wider scope that covers the same connections; nil where there is none.
    public var wider: SessionKey? {
        switch scope {
        case .connection: SessionKey(client: client, clientPort: nil, home: home)
        case .client: SessionKey(client: nil, clientPort: nil, home: home)
        case .service: nil
        }
    }

    /// Whether this is one of the session's clients.
    public func covers(_ endpoint: Endpoint) -> Bool {
        (client == nil || client == endpoint.address) && (clientPort == nil || clientPort == endpoint.port)
    }

    /// Whether an address can be a client of both sessions.
    public func sharesAddress(with other: SessionKey) -> Bool {
        client == nil || other.client == nil || client == other.client
    }

    /// Whether an endpoint can be a client of both sessions.
    public func sharesClient(with other: SessionKey) -> Bool {
        sharesAddress(with: other)
            && (clientPort == nil || other.clientPort == nil || clientPort == other.clientPort)
    }
}

/// A session's key and those of the wider scopes that cover the same connections, narrowest first.
public struct CoveringKeys: Sequence, IteratorProtocol, Sendable {
    private var following: SessionKey?

    init(narrowest: SessionKey) { following = narrowest }

    public mutating func next() -> SessionKey? {
        defer { following = following?.wider }
        return following
    }
}
