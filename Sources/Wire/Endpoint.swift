// SPDX-License-Identifier: GPL-3.0-or-later

/// An address and a port.
@frozen
public struct Endpoint: Hashable, Sendable {
    public var address: IPAddress
    public var port: UInt16

    @inlinable
    public init(address: IPAddress, port: UInt16) {
        self.address = address
        self.port = port
    }
}

/// Source and destination endpoint of one direction of a connection, as one packet carries them.
@frozen
public struct FourTuple: Hashable, Sendable {
    public var source: Endpoint
    public var destination: Endpoint

    @inlinable
    public init(source: Endpoint, destination: Endpoint) {
        self.source = source
        self.destination = destination
    }

    /// The other direction.
    @inlinable
    public var reversed: FourTuple { FourTuple(source: destination, destination: source) }
}
