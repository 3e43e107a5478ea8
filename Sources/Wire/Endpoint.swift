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

    /// One word for IPv4: see `IPAddress.hash(into:)`.
    @inlinable
    public func hash(into hasher: inout Hasher) {
        switch address {
        case .v4(let address): hasher.combine(UInt64(address.rawValue) << 16 | UInt64(port))
        case .v6(let address):
            hasher.combine(address.high)
            hasher.combine(address.low)
            hasher.combine(UInt64(port))
        }
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
