// SPDX-License-Identifier: GPL-3.0-or-later

import Rewriter
import Wire

/// Packets, flows and tables for the benchmarks.
enum Samples {
    static let home = endpoint(0xc612_0202, 6379)
    static let host = endpoint(0xc612_0302, 6379)

    static func endpoint(_ address: UInt32, _ port: UInt16) -> Endpoint {
        Endpoint(address: .v4(IPv4Address(rawValue: address)), port: port)
    }

    /// Client number `number` → home; every number is another four-tuple.
    static func tuple(_ number: Int) -> FourTuple {
        FourTuple(
            source: endpoint(0xc613_0000 + UInt32(number / 50_000), UInt16(10_000 + number % 50_000)),
            destination: home)
    }

    /// A segment of `length` octets from the IP header on, with right checksums.
    static func packet(_ number: Int, length: Int) -> [UInt8] {
        TCPSegment(
            tuple: tuple(number), sequence: SequenceNumber(1), acknowledgement: SequenceNumber(2), flags: .ack,
            window: 512, payloadLength: UInt16(length - 40)
        ).encode()
    }
}

/// A flow table that closures can share.
final class SharedTable {
    var table: FlowTable

    /// `count` flows whose destination is translated, one for each client from number 0 on.
    init(flows count: Int, treatment: Treatment = .rewrite) {
        table = FlowTable(capacity: max(1024, count), seed: 0x5eed, treatment: treatment)
        table.setMark(1, of: Translation(endpoint: Samples.host, clientPort: 0))
        for number in 0..<count {
            table.set(
                FlowKey(stage: .prerouting, tuple: Samples.tuple(number)),
                .passage(.translateDestination(Samples.host)))
        }
    }

    /// The ruling on a packet, which is left as the table has made it.
    func judge(_ packet: inout [UInt8], checksum: ChecksumState) -> Judgement {
        var span = packet.mutableSpan
        return table.judge(&span, stage: .prerouting, checksum: checksum, isWhole: true)
    }
}
