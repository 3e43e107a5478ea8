// SPDX-License-Identifier: GPL-3.0-or-later

/// A range of addresses that share their first bits (RFC 4632 section 3.1, RFC 4291 section 2.3).
public struct AddressPrefix: Hashable, Sendable {
    /// The first address: all bits behind the prefix are zero.
    public let address: IPAddress
    /// How many bits the addresses share, 0 to 32 or 128.
    public let length: Int

    /// nil when `length` is out of range, or when bits behind the prefix are set.
    public init?(_ address: IPAddress, length: Int) {
        guard (0...(address.family == .ipv4 ? 32 : 128)).contains(length) else { return nil }
        self.address = address
        self.length = length
        guard Self.masked(address, length) == address else { return nil }
    }

    /// The prefix that holds this address alone.
    public init(_ address: IPAddress) {
        self.address = address
        length = address.family == .ipv4 ? 32 : 128
    }

    public func contains(_ other: IPAddress) -> Bool {
        other.family == address.family && Self.masked(other, length) == address
    }

    private static func masked(_ address: IPAddress, _ length: Int) -> IPAddress {
        switch address {
        case .v4(let address):
            return .v4(IPv4Address(rawValue: length == 0 ? 0 : address.rawValue & (~0 << UInt32(32 - length))))
        case .v6(let address):
            let high: UInt64 = length >= 64 ? ~0 : length == 0 ? 0 : ~0 << UInt64(64 - length)
            let low: UInt64 = length == 128 ? ~0 : length <= 64 ? 0 : ~0 << UInt64(128 - length)
            return .v6(IPv6Address(high: address.high & high, low: address.low & low))
        }
    }
}

extension AddressPrefix: LosslessStringConvertible {
    /// `192.0.2.0/24`, `2001:db8::/32`, or a single address. Bits behind the prefix must be zero.
    public init?(_ description: String) {
        guard let slash = description.lastIndex(of: "/") else {
            guard let address = IPAddress(description) else { return nil }
            self.init(address)
            return
        }
        let digits = description[description.index(after: slash)...]
        guard let address = IPAddress(String(description[..<slash])), (1...3).contains(digits.utf8.count),
            digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let length = Int(digits)
        else { return nil }
        self.init(address, length: length)
    }

    public var description: String {
        length == (address.family == .ipv4 ? 32 : 128) ? "\(address)" : "\(address)/\(length)"
    }
}
