// SPDX-License-Identifier: GPL-3.0-or-later

import Rewriter
import Testing
import Wire

/// What the kernel writes, user space need not see whole, and only says by which mark it is known.
@Suite struct MarkedJudgementTests {
    private func endpoint(_ number: Int, _ family: AddressFamily) -> Endpoint {
        let address: IPAddress =
            family == .ipv4
            ? .v4(IPv4Address(rawValue: 0xC633_6400 | UInt32(number % 50)))
            : .v6(IPv6Address(high: 0x2001_0db8_0000_0000, low: UInt64(number % 50)))
        return Endpoint(address: address, port: UInt16(1 + number / 50))
    }

    @Test func `every translation gets its own mark and the octets stay`() {
        for family in AddressFamily.allCases {
            var table = FlowTable(capacity: 8, seed: 3, treatment: .mark)
            let client = endpoint(7, family)
            // Many translations in one table: different addresses, ports and ports of the client.
            for number in 0..<1000 {
                table.setMark(
                    UInt32(number + 1),
                    of: Translation(endpoint: endpoint(number, family), clientPort: UInt16(number % 2)))
            }
            for number in 0..<1000 {
                let tuple = FourTuple(source: client, destination: endpoint(number + 1, family))
                let (to, port) = (endpoint(number, family), UInt16(number % 2))
                for (key, passage) in [
                    (FlowKey(stage: .prerouting, tuple: tuple), Passage.translateDestination(to, clientPort: port)),
                    (FlowKey(stage: .postrouting, tuple: tuple), .translateSource(to, clientPort: port)),
                ] {
                    table.set(key, .passage(passage))
                    let sent = TCPSegment(
                        tuple: tuple, sequence: SequenceNumber(1), acknowledgement: SequenceNumber(2), flags: .ack,
                        window: 3, payloadLength: 0
                    ).encode()
                    var octets = sent
                    var packet = octets.mutableSpan
                    let judgement = table.judge(&packet, stage: key.stage, checksum: .pending, isWhole: false)
                    #expect(judgement.ruling == .acceptMarked && judgement.mark == UInt32(number + 1))
                    #expect(octets == sent)
                }
            }
        }
    }

    @Test func `what has no mark, and what goes to the other family, is dropped`() {
        var table = FlowTable(capacity: 8, seed: 3, treatment: .mark)
        let tuple = FourTuple(source: endpoint(1, .ipv4), destination: endpoint(2, .ipv4))
        let key = FlowKey(stage: .prerouting, tuple: tuple)
        for (family, note) in [(AddressFamily.ipv4, Note.unmarked), (.ipv6, .otherFamily)] {
            let host = endpoint(3, family)
            // Whose number has been taken back is as if it never had one.
            for mark in [5, 0] as [UInt32] { table.setMark(mark, of: Translation(endpoint: host, clientPort: 0)) }
            if family == .ipv6 { table.setMark(9, of: Translation(endpoint: host, clientPort: 0)) }
            table.set(key, .passage(.translateDestination(host)))
            var octets = TCPSegment(
                tuple: tuple, sequence: SequenceNumber(1), acknowledgement: SequenceNumber(2), flags: .ack, window: 3,
                payloadLength: 0
            ).encode()
            var packet = octets.mutableSpan
            let judgement = table.judge(&packet, stage: .prerouting, checksum: .complete, isWhole: true)
            #expect(judgement == Judgement(.drop, note: note))
        }
    }
}
