// SPDX-License-Identifier: GPL-3.0-or-later

/// An IPv4 address as a number: 192.0.2.1 is `0xC0000201`, whatever the machine's byte order.
@frozen
public struct IPv4Address: Hashable, Sendable {
    /// The address, most significant octet first in the number's own order.
    public var rawValue: UInt32

    @inlinable
    public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// An IPv6 address as two numbers: `high` holds the first eight octets, `low` the last eight.
@frozen
public struct IPv6Address: Hashable, Sendable {
    /// Octets 0 to 7, most significant first.
    public var high: UInt64
    /// Octets 8 to 15, most significant first.
    public var low: UInt64

    @inlinable
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
}

/// The two families of addresses, as a choice of layout and of table.
@frozen
public enum AddressFamily: UInt8, Hashable, Sendable, CaseIterable {
    case ipv4 = 4
    case ipv6 = 6
}

/// An address of either family.
@frozen
public enum IPAddress: Hashable, Sendable {
    case v4(IPv4Address)
    case v6(IPv6Address)

    @inlinable
    public var family: AddressFamily {
        switch self {
        case .v4: .ipv4
        case .v6: .ipv6
        }
    }

    /// In whole words: tables of connections are asked hundreds of times in one migration.
    @inlinable
    public func hash(into hasher: inout Hasher) {
        switch self {
        case .v4(let address): hasher.combine(UInt64(address.rawValue))
        case .v6(let address):
            hasher.combine(address.high)
            hasher.combine(address.low)
        }
    }

    /// The address as two numbers: as `IPv6Address` has them, or 0 and the number of an IPv4 address.
    @inlinable
    public var numbers: (high: UInt64, low: UInt64) {
        switch self {
        case .v4(let address): (0, UInt64(address.rawValue))
        case .v6(let address): (address.high, address.low)
        }
    }

    /// The octets in network order: four or sixteen.
    public var octets: [UInt8] {
        switch self {
        case .v4(let address):
            (0..<4).map { (index: Int) -> UInt8 in
                UInt8(truncatingIfNeeded: address.rawValue >> UInt32(24 - 8 * index))
            }
        case .v6(let address):
            (0..<16).map { (index: Int) -> UInt8 in
                UInt8(truncatingIfNeeded: (index < 8 ? address.high : address.low) >> UInt64(56 - 8 * (index & 7)))
            }
        }
    }

    /// An address from its octets in network order; nil unless there are four or sixteen.
    public init?(octets: some Collection<UInt8>) {
        switch octets.count {
        case 4:
            self = .v4(IPv4Address(rawValue: octets.reduce(0) { $0 << 8 | UInt32($1) }))
        case 16:
            self = .v6(
                IPv6Address(
                    high: octets.prefix(8).reduce(0) { $0 << 8 | UInt64($1) },
                    low: octets.dropFirst(8).reduce(0) { $0 << 8 | UInt64($1) }))
        default:
            return nil
        }
    }

    /// The address that stands for any: 0.0.0.0 or ::.
    @inlinable
    public static func any(_ family: AddressFamily) -> IPAddress {
        switch family {
        case .ipv4: .v4(IPv4Address(rawValue: 0))
        case .ipv6: .v6(IPv6Address(high: 0, low: 0))
        }
    }

    /// Whether a session can have this address: not unspecified, loopback, multicast or broadcast.
    public var isUnicast: Bool {
        switch self {
        case .v4(let address):
            let first = address.rawValue >> 24
            return address.rawValue != 0 && first != 0 && first != 127 && first < 224
        case .v6(let address):
            return address.high >> 56 != 0xff && !(address.high == 0 && address.low <= 1)
        }
    }
}
