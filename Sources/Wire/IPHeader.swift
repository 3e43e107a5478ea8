// SPDX-License-Identifier: GPL-3.0-or-later

/// Protocol numbers (IANA) that the gateway looks at.
@frozen
public enum ProtocolNumber {
    @inlinable public static var hopByHop: UInt8 { 0 }
    @inlinable public static var icmp: UInt8 { 1 }
    @inlinable public static var tcp: UInt8 { 6 }
    @inlinable public static var routing: UInt8 { 43 }
    @inlinable public static var fragment: UInt8 { 44 }
    @inlinable public static var authentication: UInt8 { 51 }
    @inlinable public static var icmpv6: UInt8 { 58 }
    @inlinable public static var destinationOptions: UInt8 { 60 }
}

/// Why octets are not a packet that could be judged.
@frozen
public enum Malformation: UInt8, Hashable, Sendable, CaseIterable {
    /// The octets end before a header does.
    case truncated
    /// The version is neither 4 nor 6.
    case unknownVersion
    /// The IPv4 header length is less than 20 octets.
    case badHeaderLength
    /// The total length is less than the headers in it.
    case badTotalLength
    /// More IPv6 extension headers than `IPHeader.mostExtensionHeaders`.
    case tooManyExtensionHeaders
    /// The TCP data offset is less than 20 octets, or more than the packet holds.
    case badDataOffset
}

/// Where the parts of one IPv4 (RFC 791) or IPv6 (RFC 8200) header with its extension headers lie. All offsets count
/// octets from the beginning of the span; the value holds no octets and is good for that span only.
@frozen
public struct IPHeader: Hashable, Sendable {
    /// A chain of more extension headers than this is malformed: it bounds the work one packet can cause.
    @inlinable public static var mostExtensionHeaders: Int { 8 }

    public var family: AddressFamily
    /// The first octet of the IP header.
    public var offset: Int
    /// The first octet after the header, its options and extension headers.
    public var payloadOffset: Int
    /// The end that the length field claims; the span may be shorter (a copy that was cut, a quotation in ICMP).
    public var end: Int
    /// What the payload is.
    public var protocolNumber: UInt8
    /// The payload's place in the unfragmented datagram, in octets.
    public var fragmentOffset: Int
    /// Whether more fragments follow.
    public var moreFragments: Bool
    /// Whether a routing header still has segments to visit, so that the header's destination is not the last one.
    public var isSourceRouted: Bool

    @inlinable @inline(__always)
    internal init(
        family: AddressFamily, offset: Int, payloadOffset: Int, end: Int, protocolNumber: UInt8,
        fragmentOffset: Int = 0, moreFragments: Bool = false
    ) {
        self.family = family
        self.offset = offset
        self.payloadOffset = payloadOffset
        self.end = end
        self.protocolNumber = protocolNumber
        self.fragmentOffset = fragmentOffset
        self.moreFragments = moreFragments
        isSourceRouted = false
    }

    /// Whether this is only a part of a datagram. An IPv6 fragment header of a whole datagram (RFC 6946) does not
    /// count.
    @inlinable
    public var isFragment: Bool { fragmentOffset != 0 || moreFragments }

    /// The offset of the source address.
    @inlinable @inline(__always)
    public var sourceOffset: Int { offset + (family == .ipv4 ? 12 : 8) }

    /// The offset of the destination address.
    @inlinable @inline(__always)
    public var destinationOffset: Int { offset + (family == .ipv4 ? 16 : 24) }

    /// The source address in `packet`.
    @inlinable @inline(__always)
    public func source(in packet: Span<UInt8>) -> IPAddress { packet.address(family, at: sourceOffset) }

    /// The destination address in `packet`.
    @inlinable @inline(__always)
    public func destination(in packet: Span<UInt8>) -> IPAddress { packet.address(family, at: destinationOffset) }

    /// Writes an address at `offset` (that of the source or of the destination) and corrects the IPv4 header checksum.
    @inlinable @inline(__always)
    internal func replaceAddress(at offset: Int, by new: IPAddress, in packet: inout MutableSpan<UInt8>) {
        let old = packet.span.address(family, at: offset)
        packet.store(new, at: offset)
        guard family == .ipv4 else { return }
        var delta = ChecksumDelta()
        delta.replace(old, by: new)
        let field = self.offset + 10
        packet.store(delta.applied(to: packet.span.number16(at: field)), at: field)
    }
}

/// An IP header, or why there is none.
@frozen
@usableFromInline
internal enum IPHeaderRecognition {
    case header(IPHeader)
    case malformed(Malformation)

    /// Reads the header that begins at `offset`; nothing at or after `limit` is read. The payload need not be there.
    @inlinable @inline(__always)
    internal init(_ packet: Span<UInt8>, at offset: Int, limit: Int) {
        guard offset < limit else {
            self = .malformed(.truncated)
            return
        }
        switch packet[offset] >> 4 {
        case 4: self = Self.ipv4(packet, at: offset, limit: limit)
        case 6: self = Self.ipv6(packet, at: offset, limit: limit)
        default: self = .malformed(.unknownVersion)
        }
    }

    @inlinable @inline(__always)
    internal static func ipv4(_ packet: Span<UInt8>, at offset: Int, limit: Int) -> IPHeaderRecognition {
        guard limit - offset >= 20 else { return .malformed(.truncated) }
        let length = Int(packet[offset] & 0x0f) * 4
        guard length >= 20 else { return .malformed(.badHeaderLength) }
        guard limit - offset >= length else { return .malformed(.truncated) }
        let total = Int(packet.number16(at: offset + 2))
        guard total >= length else { return .malformed(.badTotalLength) }
        let fragment = packet.number16(at: offset + 6)
        return .header(
            IPHeader(
                family: .ipv4, offset: offset, payloadOffset: offset + length, end: offset + total,
                protocolNumber: packet[offset + 9], fragmentOffset: Int(fragment & 0x1fff) * 8,
                moreFragments: fragment & 0x2000 != 0))
    }

    @inlinable
    internal static func ipv6(_ packet: Span<UInt8>, at offset: Int, limit: Int) -> IPHeaderRecognition {
        guard limit - offset >= 40 else { return .malformed(.truncated) }
        var header = IPHeader(
            family: .ipv6, offset: offset, payloadOffset: offset + 40,
            end: offset + 40 + Int(packet.number16(at: offset + 4)), protocolNumber: packet[offset + 6])
        for _ in 0..<IPHeader.mostExtensionHeaders {
            let length: Int
            let next = header.payloadOffset
            switch header.protocolNumber {
            case ProtocolNumber.hopByHop, ProtocolNumber.destinationOptions, ProtocolNumber.routing:
                guard limit - next >= 8 else { return .malformed(.truncated) }
                length = (Int(packet[next + 1]) + 1) * 8
                if header.protocolNumber == ProtocolNumber.routing, packet[next + 3] != 0 {
                    header.isSourceRouted = true
                }
            case ProtocolNumber.fragment:
                guard limit - next >= 8 else { return .malformed(.truncated) }
                length = 8
                let field = packet.number16(at: next + 2)
                header.fragmentOffset = Int(field & 0xfff8)
                header.moreFragments = field & 1 != 0
            case ProtocolNumber.authentication:
                // Counted in 32-bit words minus 2 (RFC 4302 section 2.2), unlike the others.
                guard limit - next >= 8 else { return .malformed(.truncated) }
                length = (Int(packet[next + 1]) + 2) * 4
            default:
                return .header(header)
            }
            header.protocolNumber = packet[next]
            header.payloadOffset = next + length
            guard header.payloadOffset <= header.end else { return .malformed(.badTotalLength) }
            guard header.payloadOffset <= limit else { return .malformed(.truncated) }
            // What follows in a later fragment is the middle of something.
            if header.fragmentOffset != 0 { return .header(header) }
        }
        switch header.protocolNumber {
        case ProtocolNumber.hopByHop, ProtocolNumber.destinationOptions, ProtocolNumber.routing,
            ProtocolNumber.fragment, ProtocolNumber.authentication:
            return .malformed(.tooManyExtensionHeaders)
        default:
            return .header(header)
        }
    }
}
