// SPDX-License-Identifier: GPL-3.0-or-later

extension TCPSegment {
    /// The segment as a packet from its IP header on, for a raw socket. Octets of data are zero; checksums are full.
    ///
    /// IPv4: don't fragment, TTL 64, identification as given (any value will do for a datagram that is not fragmented,
    /// RFC 6864 section 4.1). IPv6: hop limit 64, flow label 0. Timestamps are written as NOP, NOP, TS (RFC 7323
    /// appendix A). Empty when the two addresses are of different families or the length does not fit the IP header.
    public func encode(identification: UInt16 = 0) -> [UInt8] {
        let family = tuple.source.address.family
        guard tuple.destination.address.family == family else { return [] }
        let ipLength = family == .ipv4 ? 20 : 40
        let headerLength = timestamps == nil ? 20 : 32
        let tcpLength = headerLength + Int(payloadLength)
        guard tcpLength + (family == .ipv4 ? ipLength : 0) <= 0xffff else { return [] }
        var octets = [UInt8](repeating: 0, count: ipLength + tcpLength)
        var packet = octets.mutableSpan
        let ip = IPHeader(
            family: family, offset: 0, payloadOffset: ipLength, end: ipLength + tcpLength,
            protocolNumber: ProtocolNumber.tcp)
        switch family {
        case .ipv4:
            packet[0] = 0x45
            packet.store(UInt16(truncatingIfNeeded: ip.end), at: 2)
            packet.store(identification, at: 4)
            packet.store(0x4000 as UInt16, at: 6)
            packet[8] = 64
            packet[9] = ProtocolNumber.tcp
        case .ipv6:
            packet[0] = 0x60
            packet.store(UInt16(truncatingIfNeeded: tcpLength), at: 4)
            packet[6] = ProtocolNumber.tcp
            packet[7] = 64
        }
        packet.store(tuple.source.address, at: ip.sourceOffset)
        packet.store(tuple.destination.address, at: ip.destinationOffset)
        if family == .ipv4 {
            var sum = InternetChecksum()
            sum.add(packet.span, 0..<20)
            packet.store(sum.checksum, at: 10)
        }
        packet.store(tuple.source.port, at: ipLength)
        packet.store(tuple.destination.port, at: ipLength + 2)
        packet.store(sequence.rawValue, at: ipLength + 4)
        packet.store(acknowledgement.rawValue, at: ipLength + 8)
        packet[ipLength + 12] = UInt8(headerLength / 4) << 4
        packet[ipLength + 13] = flags.rawValue
        packet.store(window, at: ipLength + 14)
        if let timestamps {
            packet.store(0x0101_080a as UInt32, at: ipLength + 20)
            packet.store(timestamps.value, at: ipLength + 24)
            packet.store(timestamps.echoReply, at: ipLength + 28)
        }
        let tcp = TCPPacket(ip: ip, headerLength: headerLength)
        packet.store(tcp.checksumFromScratch(in: packet.span), at: ipLength + 16)
        return octets
    }
}
