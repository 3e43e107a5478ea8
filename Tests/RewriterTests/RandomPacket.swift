// SPDX-License-Identifier: GPL-3.0-or-later

import Wire

/// The Internet checksum as RFC 1071 words it, one 16-bit word after the other: slow, and nothing like the code under
/// test.
func referenceChecksum(_ octets: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: octets.count, by: 2) {
        sum += UInt32(octets[index]) << 8 + (index + 1 < octets.count ? UInt32(octets[index + 1]) : 0)
        sum = (sum & 0xffff) + (sum >> 16)
    }
    return ~UInt16(sum)
}

/// A correct TCP packet with random addresses, options, extension headers and data, and a correct ICMP error about it.
struct RandomPacket {
    var octets: [UInt8] = []
    var tuple: FourTuple
    /// Where the TCP header begins.
    var transport = 0

    init(using random: inout SplitMix64) {
        let family: AddressFamily = Bool.random(using: &random) ? .ipv4 : .ipv6
        tuple = Self.tuple(family, using: &random)
        var segment = octetsOf(tuple.source.port) + octetsOf(tuple.destination.port) + random.octets(8)
        let options = Int.random(in: 0...10, using: &random) * 4
        segment += [UInt8((20 + options) / 4) << 4, UInt8.random(in: 0...255, using: &random)] + random.octets(2)
        segment += [0, 0] + random.octets(2 + options + Int.random(in: 0...300, using: &random))
        let pseudo =
            tuple.source.address.octets + tuple.destination.address.octets
            + [0, 0] + octetsOf(UInt16(segment.count)) + [0, 6]
        segment.replaceSubrange(16..<18, with: octetsOf(referenceChecksum(pseudo + segment)))
        switch family {
        case .ipv4:
            let options = Int.random(in: 0...10, using: &random) * 4
            var header: [UInt8] = [0x45 + UInt8(options / 4), 0] + octetsOf(UInt16(20 + options + segment.count))
            header += random.octets(2) + [0x40, 0, 64, 6, 0, 0] + tuple.source.address.octets
            header += tuple.destination.address.octets + Array(repeating: 1, count: options)
            header.replaceSubrange(10..<12, with: octetsOf(referenceChecksum(header)))
            octets = header
        case .ipv6:
            let kinds: [UInt8] = [0, 43, 44, 51, 60]
            let headers = (0..<Int.random(in: 0...4, using: &random)).map { _ in kinds[Int(random.next() % 5)] }
            var chain: [UInt8] = []
            for (index, kind) in headers.enumerated() {
                let next: UInt8 = index + 1 < headers.count ? headers[index + 1] : 6
                switch kind {
                case 43: chain += [next, 2, 2, 0] + random.octets(20)
                case 44: chain += [next, 0, 0, 0] + random.octets(4)
                case 51: chain += [next, 4, 0, 0] + random.octets(20)
                default: chain += [next, 1] + random.octets(14)
                }
            }
            octets = [0x60, 0, 0, 0] + octetsOf(UInt16(chain.count + segment.count)) + [headers.first ?? 6, 64]
            octets += tuple.source.address.octets + tuple.destination.address.octets + chain
        }
        transport = octets.count
        octets += segment
    }

    static func tuple(_ family: AddressFamily, using random: inout SplitMix64) -> FourTuple {
        FourTuple(source: endpoint(family, using: &random), destination: endpoint(family, using: &random))
    }

    static func endpoint(_ family: AddressFamily, using random: inout SplitMix64) -> Endpoint {
        let address: IPAddress =
            family == .ipv4
            ? .v4(IPv4Address(rawValue: UInt32.random(in: 0...UInt32.max, using: &random)))
            : .v6(IPv6Address(high: random.next(), low: random.next()))
        return Endpoint(address: address, port: UInt16.random(in: 0...UInt16.max, using: &random))
    }

    /// An ICMP error about this packet, from its destination or from somewhere on the way, with a random part of it.
    func error(using random: inout SplitMix64) -> [UInt8] {
        let family = tuple.source.address.family
        let source =
            Bool.random(using: &random)
            ? tuple.destination.address : Self.endpoint(family, using: &random).address
        let quoted = octets.prefix(transport + Int.random(in: 8...60, using: &random))
        let kinds: [UInt8] = family == .ipv4 ? [3, 11, 12] : [1, 2, 3, 4]
        var message: [UInt8] = [kinds.randomElement(using: &random) ?? 3, 0, 0, 0, 0, 0, 0, 0] + quoted
        let pseudo =
            source.octets + tuple.source.address.octets + [0, 0] + octetsOf(UInt16(message.count)) + [0, 58]
        let sum = referenceChecksum(family == .ipv4 ? message : pseudo + message)
        message.replaceSubrange(2..<4, with: octetsOf(sum))
        if family == .ipv6 {
            return [0x60, 0, 0, 0] + octetsOf(UInt16(message.count)) + [58, 64] + source.octets
                + tuple.source.address.octets + message
        }
        var header: [UInt8] = [0x45, 0] + octetsOf(UInt16(20 + message.count)) + [0, 0, 0, 0, 64, 1, 0, 0]
        header += source.octets + tuple.source.address.octets
        header.replaceSubrange(10..<12, with: octetsOf(referenceChecksum(header)))
        return header + message
    }
}

func octetsOf(_ number: UInt16) -> [UInt8] { [UInt8(number >> 8), UInt8(number & 0xff)] }
