// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

// Of several bindings that cover a connection the narrowest counts: connection, client, service.
extension SessionKey {
    /// The keys of the sessions that may hold a client's segment (client → home), narrowest first.
    public static func covering(_ tuple: FourTuple) -> [SessionKey] {
        [
            SessionKey(client: tuple.source.address, clientPort: tuple.source.port, home: tuple.destination),
            SessionKey(client: tuple.source.address, clientPort: nil, home: tuple.destination),
            SessionKey(client: nil, clientPort: nil, home: tuple.destination),
        ]
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
