// SPDX-License-Identifier: GPL-3.0-or-later

/// What the octets of a packet, from its IP header on, are. A value and never an error: what arrives is chosen by
/// others.
@frozen
public enum Recognition: Hashable, Sendable {
    /// A TCP segment, whole as far as IP is concerned.
    case tcp(TCPPacket)
    /// An ICMP or ICMPv6 error about a TCP segment.
    case icmpError(ICMPErrorPacket)
    /// A part of a datagram; with the TCP header when it is a first part that has one.
    case fragment(TCPPacket?)
    /// A correct packet of another kind, or an ICMP error about something else than TCP.
    case other
    /// Not a packet that a host would take.
    case malformed(Malformation)

    /// Looks at the octets of `packet`, which may be a copy that was cut after the headers. Reads nothing outside it.
    @inlinable @inline(__always)
    public init(_ packet: Span<UInt8>) {
        switch IPHeaderRecognition(packet, at: 0, limit: packet.count) {
        case .malformed(let malformation):
            self = .malformed(malformation)
        case .header(let ip):
            if ip.fragmentOffset != 0 {
                self = .fragment(nil)
            } else if ip.isSourceRouted {
                // The checksum covers the last destination, which is not the one in the header (RFC 8200 section 8.1).
                self = .other
            } else if ip.protocolNumber == ProtocolNumber.tcp {
                self = TCPPacket.recognise(packet, ip)
            } else if ip.moreFragments {
                self = .fragment(nil)
            } else if ip.protocolNumber == (ip.family == .ipv4 ? ProtocolNumber.icmp : ProtocolNumber.icmpv6) {
                self = ICMPErrorPacket.recognise(packet, ip)
            } else {
                self = .other
            }
        }
    }
}
