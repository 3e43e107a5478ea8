// SPDX-License-Identifier: GPL-3.0-or-later

// Numbers in network byte order inside a packet. Every access is checked against the span's bounds: an offset that
// does not fit the packet stops the program, so callers compare with `count` first.

extension Span where Element == UInt8 {
    /// The 16-bit number at `offset`, most significant octet first.
    @inlinable @inline(__always)
    internal func number16(at offset: Int) -> UInt16 {
        // "unsafe" because a raw load could make any type from any octets; every pattern is a valid integer.
        UInt16(bigEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: UInt16.self))
    }

    /// The 32-bit number at `offset`, most significant octet first.
    @inlinable @inline(__always)
    internal func number32(at offset: Int) -> UInt32 {
        UInt32(bigEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    /// The 64-bit number at `offset`, most significant octet first.
    @inlinable @inline(__always)
    internal func number64(at offset: Int) -> UInt64 {
        UInt64(bigEndian: unsafe bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
    }

    /// The address of `family` at `offset`.
    @inlinable @inline(__always)
    internal func address(_ family: AddressFamily, at offset: Int) -> IPAddress {
        switch family {
        case .ipv4: .v4(IPv4Address(rawValue: number32(at: offset)))
        case .ipv6: .v6(IPv6Address(high: number64(at: offset), low: number64(at: offset + 8)))
        }
    }
}

extension MutableSpan where Element == UInt8 {
    /// Writes `number` at `offset`, most significant octet first.
    @inlinable @inline(__always)
    @_lifetime(self: copy self)
    internal mutating func store<Number: FixedWidthInteger & BitwiseCopyable>(_ number: Number, at offset: Int) {
        var octets = unsafe mutableBytes
        octets.storeBytes(of: number.bigEndian, toByteOffset: offset, as: Number.self)
    }

    /// Writes `address` at `offset`: four or sixteen octets.
    @inlinable @inline(__always)
    @_lifetime(self: copy self)
    internal mutating func store(_ address: IPAddress, at offset: Int) {
        switch address {
        case .v4(let address):
            store(address.rawValue, at: offset)
        case .v6(let address):
            store(address.high, at: offset)
            store(address.low, at: offset + 8)
        }
    }
}
