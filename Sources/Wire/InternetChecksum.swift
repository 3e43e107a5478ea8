// SPDX-License-Identifier: GPL-3.0-or-later

/// The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.
///
/// Ranges are added in any order; each must begin at an even distance from the beginning of what is summed.
@frozen
public struct InternetChecksum: Hashable, Sendable {
    /// A one's complement sum of 64-bit lanes in the machine's byte order. The sum does not depend on the width of the
    /// lanes nor on the byte order of the words (RFC 1071 section 2), so only the folded result is put in order.
    @usableFromInline internal var lanes: UInt64

    @inlinable
    public init() { lanes = 0 }

    @inlinable @inline(__always)
    internal mutating func addLane(_ lane: UInt64) {
        let (sum, carry) = lanes.addingReportingOverflow(lane)
        lanes = sum &+ (carry ? 1 : 0)
    }

    /// Adds the octets `range` of `packet`; an odd last octet counts as the high half of a word.
    @inlinable
    public mutating func add(_ packet: Span<UInt8>, _ range: Range<Int>) {
        let octets = unsafe packet.bytes
        var offset = range.lowerBound
        let end = range.upperBound
        // 64-bit lanes in vector registers, which have no carry: `sum` counts modulo 2⁶⁴, `high` the upper halves alone, so
        // the lower halves are what `sum` has beyond them. Nothing is lost in 2³² additions. The loads are checked against
        // the bounds, and all bit patterns are integers.
        if offset &+ 64 <= end {
            var sum = SIMD8<UInt64>()
            var high = SIMD8<UInt64>()
            repeat {
                let lanes = unsafe octets.unsafeLoadUnaligned(fromByteOffset: offset, as: SIMD8<UInt64>.self)
                sum &+= lanes
                high &+= lanes &>> 32
                offset &+= 64
            } while offset &+ 64 <= end
            addLane((sum &- (high &<< 32)).wrappedSum())
            addLane(high.wrappedSum())
        }
        while offset &+ 8 <= end {
            addLane(unsafe octets.unsafeLoadUnaligned(fromByteOffset: offset, as: UInt64.self))
            offset &+= 8
        }
        while offset &+ 2 <= end {
            addLane(UInt64(unsafe octets.unsafeLoadUnaligned(fromByteOffset: offset, as: UInt16.self)))
            offset &+= 2
        }
        if offset < end { addLane(UInt64((UInt16(packet[offset]) << 8).bigEndian)) }
    }

    /// Adds a number that stands in the packet as a whole 16-bit word.
    @inlinable
    public mutating func add(_ word: UInt16) { addLane(UInt64(word.bigEndian)) }

    /// Adds the pseudo-header of TCP over IPv4 (RFC 9293 section 3.1) or of an upper layer over IPv6 (RFC 8200 section
    /// 8.1). `length` counts the octets of upper-layer header and data; for addresses of one family only.
    @inlinable
    public mutating func addPseudoHeader(
        source: IPAddress, destination: IPAddress, protocolNumber: UInt8, length: Int
    ) {
        add(source)
        add(destination)
        let length = UInt32(truncatingIfNeeded: length)
        addLane(UInt64(length.bigEndian))
        add(UInt16(protocolNumber))
    }

    @inlinable
    internal mutating func add(_ address: IPAddress) {
        switch address {
        case .v4(let address):
            addLane(UInt64(address.rawValue.bigEndian))
        case .v6(let address):
            addLane(address.high.bigEndian)
            addLane(address.low.bigEndian)
        }
    }

    /// The value of the checksum field: the complement of the folded sum. Over octets that already hold a right
    /// checksum it is 0.
    @inlinable
    public var checksum: UInt16 {
        var sum = (lanes & 0xffff_ffff) &+ (lanes >> 32)
        sum = (sum & 0xffff) &+ (sum >> 16)
        sum = (sum & 0xffff) &+ (sum >> 16)
        sum = (sum & 0xffff) &+ (sum >> 16)
        return ~UInt16(bigEndian: UInt16(truncatingIfNeeded: sum))
    }
}

/// What a rewrite adds to the checksum of the octets it changes (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')).
///
/// Equation 3 gives the same field as a sum from scratch, also where that field is 0x0000, because no packet with a
/// header sums to zero. A field of 0xFFFF, which no correct sender writes, passes the receiver's check as well as
/// 0x0000; it leaves as 0x0000.
@frozen
public struct ChecksumDelta: Hashable, Sendable {
    /// The sum of `~m + m'`; 32-bit terms stand for their two words, since 2¹⁶ ≡ 1 modulo 2¹⁶ - 1.
    @usableFromInline internal var sum: UInt64

    @inlinable
    public init() { sum = 0 }

    /// One 16-bit word changes.
    @inlinable
    public mutating func replace(_ old: UInt16, by new: UInt16) { sum &+= UInt64(~old) &+ UInt64(new) }

    /// Two 16-bit words change.
    @inlinable
    public mutating func replace(_ old: UInt32, by new: UInt32) { sum &+= UInt64(~old) &+ UInt64(new) }

    /// Four 16-bit words change.
    @inlinable
    public mutating func replace(_ old: UInt64, by new: UInt64) {
        replace(UInt32(truncatingIfNeeded: old >> 32), by: UInt32(truncatingIfNeeded: new >> 32))
        replace(UInt32(truncatingIfNeeded: old), by: UInt32(truncatingIfNeeded: new))
    }

    /// An address changes into one of the same family.
    @inlinable
    public mutating func replace(_ old: IPAddress, by new: IPAddress) {
        switch (old, new) {
        case (.v4(let old), .v4(let new)):
            replace(old.rawValue, by: new.rawValue)
        case (.v6(let old), .v6(let new)):
            replace(old.high, by: new.high)
            replace(old.low, by: new.low)
        default:
            break
        }
    }

    /// The field `checksum` after the changes.
    @inlinable
    public func applied(to checksum: UInt16) -> UInt16 {
        var total = UInt64(~checksum) &+ sum
        total = (total & 0xffff_ffff) &+ (total >> 32)
        total = (total & 0xffff) &+ (total >> 16)
        total = (total & 0xffff) &+ (total >> 16)
        total = (total & 0xffff) &+ (total >> 16)
        return ~UInt16(truncatingIfNeeded: total)
    }
}
