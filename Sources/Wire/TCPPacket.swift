// SPDX-License-Identifier: GPL-3.0-or-later

/// Where the TCP header of a packet lies. Holds offsets only; every verb takes the span it was recognised in.
@frozen
public struct TCPPacket: Hashable, Sendable {
    public var ip: IPHeader
    /// Octets of the TCP header with its options: 20 to 60.
    public var headerLength: Int

    /// Reads the fixed header: 20 octets of it must be there. `malformed` says what is wrong otherwise.
    @inlinable @inline(__always)
    internal static func recognise(_ packet: Span<UInt8>, _ ip: IPHeader) -> Recognition {
        guard ip.end - ip.payloadOffset >= 20 else { return .malformed(.badTotalLength) }
        guard packet.count - ip.payloadOffset >= 20 else { return .malformed(.truncated) }
        let length = Int(packet[ip.payloadOffset + 12] >> 4) * 4
        guard length >= 20, length <= ip.end - ip.payloadOffset else { return .malformed(.badDataOffset) }
        let tcp = TCPPacket(ip: ip, headerLength: length)
        return ip.isFragment ? .fragment(tcp) : .tcp(tcp)
    }

    @inlinable @inline(__always)
    internal init(ip: IPHeader, headerLength: Int) {
        self.ip = ip
        self.headerLength = headerLength
    }

    /// Whether `packet` holds all octets that the length field claims.
    @inlinable
    public func isWhole(in packet: Span<UInt8>) -> Bool { ip.end <= packet.count }

    @inlinable
    public func flags(in packet: Span<UInt8>) -> TCPFlags { TCPFlags(rawValue: packet[ip.payloadOffset + 13]) }

    /// Source and destination as they stand in `packet`.
    @inlinable @inline(__always)
    public func fourTuple(in packet: Span<UInt8>) -> FourTuple {
        FourTuple(
            source: Endpoint(address: ip.source(in: packet), port: packet.number16(at: ip.payloadOffset)),
            destination: Endpoint(address: ip.destination(in: packet), port: packet.number16(at: ip.payloadOffset + 2)))
    }

    /// What the control plane needs to know of this segment. In a copy that was cut, timestamps beyond the cut are nil.
    @inlinable
    public func observed(in packet: Span<UInt8>) -> ObservedSegment {
        let tcp = ip.payloadOffset
        return ObservedSegment(
            tuple: fourTuple(in: packet),
            sequence: SequenceNumber(packet.number32(at: tcp + 4)),
            acknowledgement: SequenceNumber(packet.number32(at: tcp + 8)),
            flags: flags(in: packet),
            window: packet.number16(at: tcp + 14),
            payloadLength: UInt32(truncatingIfNeeded: ip.end - tcp - headerLength),
            timestamps: timestamps(in: packet))
    }

    /// The timestamps option (RFC 7323 section 3.2: kind 8, length 10). Options after a malformed one are not read.
    @inlinable
    public func timestamps(in packet: Span<UInt8>) -> TCPTimestamps? {
        var option = ip.payloadOffset + 20
        let end = min(ip.payloadOffset + headerLength, packet.count)
        while option < end {
            let kind = packet[option]
            if kind == 0 { return nil }
            if kind == 1 {
                option += 1
                continue
            }
            guard option + 1 < end else { return nil }
            let length = Int(packet[option + 1])
            guard length >= 2, option + length <= end else { return nil }
            if kind == 8, length == 10 {
                return TCPTimestamps(
                    value: packet.number32(at: option + 2), echoReply: packet.number32(at: option + 6))
            }
            option += length
        }
        return nil
    }

    /// Replaces the source by `endpoint`, and the destination's port unless `otherPort` is 0, and corrects the IPv4 header
    /// checksum and the TCP checksum, the latter as `checksum` says; `pending` needs the whole packet. False, and the
    /// packet untouched, when the endpoint is of the other family or the packet is not whole and `pending`.
    @inlinable @inline(__always)
    public func rewriteSource(
        to endpoint: Endpoint, otherPort: UInt16 = 0, in packet: inout MutableSpan<UInt8>, checksum: ChecksumState
    ) -> Bool {
        rewrite(
            addressOffset: ip.sourceOffset, portOffset: ip.payloadOffset, to: endpoint,
            otherPortOffset: ip.payloadOffset + 2, otherPort: otherPort, in: &packet, checksum: checksum)
    }

    /// Replaces the destination by `endpoint`, and the source's port unless `otherPort` is 0; otherwise as `rewriteSource`.
    @inlinable @inline(__always)
    public func rewriteDestination(
        to endpoint: Endpoint, otherPort: UInt16 = 0, in packet: inout MutableSpan<UInt8>, checksum: ChecksumState
    ) -> Bool {
        rewrite(
            addressOffset: ip.destinationOffset, portOffset: ip.payloadOffset + 2, to: endpoint,
            otherPortOffset: ip.payloadOffset, otherPort: otherPort, in: &packet, checksum: checksum)
    }

    @inlinable @inline(__always)
    internal func rewrite(
        addressOffset: Int, portOffset: Int, to endpoint: Endpoint, otherPortOffset: Int, otherPort: UInt16,
        in packet: inout MutableSpan<UInt8>, checksum: ChecksumState
    ) -> Bool {
        guard endpoint.address.family == ip.family else { return false }
        if checksum == .pending, ip.end > packet.count { return false }
        let field = ip.payloadOffset + 16
        if checksum == .complete {
            var delta = ChecksumDelta()
            delta.replace(packet.span.address(ip.family, at: addressOffset), by: endpoint.address)
            delta.replace(packet.span.number16(at: portOffset), by: endpoint.port)
            if otherPort != 0 { delta.replace(packet.span.number16(at: otherPortOffset), by: otherPort) }
            packet.store(delta.applied(to: packet.span.number16(at: field)), at: field)
        }
        ip.replaceAddress(at: addressOffset, by: endpoint.address, in: &packet)
        packet.store(endpoint.port, at: portOffset)
        if otherPort != 0 { packet.store(otherPort, at: otherPortOffset) }
        if checksum == .pending {
            packet.store(0 as UInt16, at: field)
            packet.store(checksumFromScratch(in: packet.span), at: field)
        }
        return true
    }

    /// The TCP checksum summed over pseudo-header, header and data as they stand; 0 when the field holds it already.
    /// The packet must be whole.
    @inlinable
    public func checksumFromScratch(in packet: Span<UInt8>) -> UInt16 {
        var sum = InternetChecksum()
        sum.addPseudoHeader(
            source: ip.source(in: packet), destination: ip.destination(in: packet),
            protocolNumber: ProtocolNumber.tcp, length: ip.end - ip.payloadOffset)
        sum.add(packet, ip.payloadOffset..<ip.end)
        return sum.checksum
    }
}
