// SPDX-License-Identifier: GPL-3.0-or-later

/// An ICMP error (RFC 792: destination unreachable, time exceeded, parameter problem) or an ICMPv6 error (RFC 4443: the
/// same and packet too big) with the beginning of the TCP packet it is about. Holds offsets only.
@frozen
public struct ICMPErrorPacket: Hashable, Sendable {
    /// The error's own IP header; its payload is the ICMP header.
    public var ip: IPHeader
    /// The quoted packet's IP header. At least eight octets of TCP follow it: ports and sequence number.
    public var quoted: IPHeader
    /// The end of the quotation.
    public var quotedEnd: Int

    @inlinable
    internal init(ip: IPHeader, quoted: IPHeader, quotedEnd: Int) {
        self.ip = ip
        self.quoted = quoted
        self.quotedEnd = quotedEnd
    }

    @inlinable
    internal static func recognise(_ packet: Span<UInt8>, _ ip: IPHeader) -> Recognition {
        let icmp = ip.payloadOffset
        let end = min(ip.end, packet.count)
        guard ip.end - icmp >= 8 else { return .malformed(.badTotalLength) }
        guard end - icmp >= 8 else { return .malformed(.truncated) }
        guard isError(type: packet[icmp], ip.family) else { return .other }
        let quotedEnd = quotationEnd(packet, ip, end: end)
        guard case .header(let quoted) = IPHeaderRecognition(packet, at: icmp + 8, limit: quotedEnd),
            quoted.family == ip.family, quoted.protocolNumber == ProtocolNumber.tcp, quoted.fragmentOffset == 0,
            !quoted.isSourceRouted, quotedEnd - quoted.payloadOffset >= 8
        else { return .other }
        return .icmpError(ICMPErrorPacket(ip: ip, quoted: quoted, quotedEnd: quotedEnd))
    }

    @inlinable @inline(__always)
    internal static func isError(type: UInt8, _ family: AddressFamily) -> Bool {
        switch family {
        case .ipv4: type == 3 || type == 11 || type == 12
        case .ipv6: (1...4).contains(type)
        }
    }

    /// Where the quotation ends: at the end of the packet, or earlier when ICMP extensions follow it, at 128 octets or
    /// more (RFC 4884 section 4: a length in 64-bit words in types 1 and 3 of ICMPv6). In ICMP the longest headers of
    /// IPv4 and TCP end before that.
    @inlinable @inline(__always)
    internal static func quotationEnd(_ packet: Span<UInt8>, _ ip: IPHeader, end: Int) -> Int {
        let icmp = ip.payloadOffset
        guard ip.family == .ipv6, packet[icmp] == 1 || packet[icmp] == 3 else { return end }
        let length = Int(packet[icmp + 4]) * 8
        return length >= 128 ? min(end, icmp + 8 + length) : end
    }

    /// Source and destination of the quoted packet: the direction of the packet that caused the error.
    @inlinable
    public func quotedTuple(in packet: Span<UInt8>) -> FourTuple {
        let tcp = quoted.payloadOffset
        return FourTuple(
            source: Endpoint(address: quoted.source(in: packet), port: packet.number16(at: tcp)),
            destination: Endpoint(address: quoted.destination(in: packet), port: packet.number16(at: tcp + 2)))
    }

    /// Whether `packet` holds all octets that the error's length field claims.
    @inlinable
    public func isWhole(in packet: Span<UInt8>) -> Bool { ip.end <= packet.count }

    /// Replaces the source of the quoted packet by `endpoint`, the quoted destination's port unless `otherPort` is 0, and the
    /// error's own destination by the endpoint's address when `andDestination`: the error then goes to the host that sent
    /// the quoted packet. See `rewriteQuotedDestination`.
    @inlinable
    public func rewriteQuotedSource(
        to endpoint: Endpoint, otherPort: UInt16 = 0, andDestination: Bool, in packet: inout MutableSpan<UInt8>,
        checksum: ChecksumState
    ) -> Bool {
        rewrite(
            quotedAddressOffset: quoted.sourceOffset, portOffset: quoted.payloadOffset, to: endpoint,
            otherPortOffset: quoted.payloadOffset + 2, otherPort: otherPort,
            outerAddressOffset: andDestination ? ip.destinationOffset : nil, in: &packet, checksum: checksum)
    }

    /// Replaces the destination of the quoted packet by `endpoint`, the quoted source's port unless `otherPort` is 0, and the
    /// error's own source by the endpoint's address when `andSource`: the host that the quoted packet was for speaks for
    /// itself.
    ///
    /// Corrects every checksum that covers what changed: of both IPv4 headers, of the quoted TCP header where the
    /// quotation reaches its checksum, and of ICMP; that of ICMP in full when `checksum` is `pending`. False, and the
    /// packet untouched, when the endpoint is of the other family or the packet is not whole and `pending`.
    @inlinable
    public func rewriteQuotedDestination(
        to endpoint: Endpoint, otherPort: UInt16 = 0, andSource: Bool, in packet: inout MutableSpan<UInt8>,
        checksum: ChecksumState
    ) -> Bool {
        rewrite(
            quotedAddressOffset: quoted.destinationOffset, portOffset: quoted.payloadOffset + 2, to: endpoint,
            otherPortOffset: quoted.payloadOffset, otherPort: otherPort,
            outerAddressOffset: andSource ? ip.sourceOffset : nil, in: &packet, checksum: checksum)
    }

    @inlinable
    internal func rewrite(
        quotedAddressOffset: Int, portOffset: Int, to endpoint: Endpoint, otherPortOffset: Int, otherPort: UInt16,
        outerAddressOffset: Int?, in packet: inout MutableSpan<UInt8>, checksum: ChecksumState
    ) -> Bool {
        guard endpoint.address.family == ip.family else { return false }
        if checksum == .pending, ip.end > packet.count { return false }
        let oldAddress = packet.span.address(ip.family, at: quotedAddressOffset)
        let oldPort = packet.span.number16(at: portOffset)

        // What changes inside the quotation is data to ICMP, its checksums included.
        var inner = ChecksumDelta()
        inner.replace(oldAddress, by: endpoint.address)
        inner.replace(oldPort, by: endpoint.port)
        if otherPort != 0 { inner.replace(packet.span.number16(at: otherPortOffset), by: otherPort) }
        var icmp = inner
        if quoted.family == .ipv4 {
            let field = quoted.offset + 10
            let old = packet.span.number16(at: field)
            quoted.replaceAddress(at: quotedAddressOffset, by: endpoint.address, in: &packet)
            icmp.replace(old, by: packet.span.number16(at: field))
        } else {
            packet.store(endpoint.address, at: quotedAddressOffset)
        }
        packet.store(endpoint.port, at: portOffset)
        if otherPort != 0 { packet.store(otherPort, at: otherPortOffset) }
        let tcpField = quoted.payloadOffset + 16
        if tcpField + 2 <= quotedEnd {
            let old = packet.span.number16(at: tcpField)
            let new = inner.applied(to: old)
            packet.store(new, at: tcpField)
            icmp.replace(old, by: new)
        }
        if let outerAddressOffset {
            // The pseudo-header of ICMPv6 has the error's own addresses (RFC 4443 section 2.3); ICMP has none.
            if ip.family == .ipv6 {
                icmp.replace(packet.span.address(.ipv6, at: outerAddressOffset), by: endpoint.address)
            }
            ip.replaceAddress(at: outerAddressOffset, by: endpoint.address, in: &packet)
        }

        let field = ip.payloadOffset + 2
        if checksum == .pending {
            packet.store(0 as UInt16, at: field)
            packet.store(checksumFromScratch(in: packet.span), at: field)
        } else {
            packet.store(icmp.applied(to: packet.span.number16(at: field)), at: field)
        }
        return true
    }

    /// The ICMP checksum summed over the message (and the pseudo-header of ICMPv6) as it stands; 0 when the field
    /// holds it already. The packet must be whole.
    @inlinable
    public func checksumFromScratch(in packet: Span<UInt8>) -> UInt16 {
        var sum = InternetChecksum()
        if ip.family == .ipv6 {
            sum.addPseudoHeader(
                source: ip.source(in: packet), destination: ip.destination(in: packet),
                protocolNumber: ProtocolNumber.icmpv6, length: ip.end - ip.payloadOffset)
        }
        sum.add(packet, ip.payloadOffset..<ip.end)
        return sum.checksum
    }
}
