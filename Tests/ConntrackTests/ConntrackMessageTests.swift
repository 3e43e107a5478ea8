// SPDX-License-Identifier: GPL-3.0-or-later

import Conntrack
import Testing
import Wire

/// What is said to the kernel and understood from it, octet by octet (this machine is little-endian).
@Suite struct ConntrackMessageTests {
    static let tuple = FourTuple(
        source: Endpoint(address: .v4(IPv4Address(rawValue: 0xc612_0102)), port: 0x1234),
        destination: Endpoint(address: .v4(IPv4Address(rawValue: 0xc612_0202)), port: 80))

    static let tupleOctets: [UInt8] = [
        20, 0, 1, 0x80,  // CTA_TUPLE_IP, nested
        8, 0, 1, 0, 198, 18, 1, 2,  // CTA_IP_V4_SRC
        8, 0, 2, 0, 198, 18, 2, 2,  // CTA_IP_V4_DST
        28, 0, 2, 0x80,  // CTA_TUPLE_PROTO, nested
        5, 0, 1, 0, 6, 0, 0, 0,  // CTA_PROTO_NUM, padded
        6, 0, 2, 0, 0x12, 0x34, 0, 0,  // CTA_PROTO_SRC_PORT
        6, 0, 3, 0, 0, 80, 0, 0,  // CTA_PROTO_DST_PORT
    ]

    @Test func `a deletion names tuple, zone and identifier`() {
        let entry = ConnectionEntry(original: Self.tuple, reply: Self.tuple.reversed, zone: 9, id: 0x0102_0304)
        let expected: [UInt8] =
            [
                88, 0, 0, 0, 2, 1, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0,  // length, IPCTNL_MSG_CT_DELETE, REQUEST | ACK, 7
                2, 0, 0, 0,  // AF_INET
                52, 0, 1, 0x80,  // CTA_TUPLE_ORIG, nested
            ] + Self.tupleOctets + [
                6, 0, 18, 0, 0, 9, 0, 0,  // CTA_ZONE
                8, 0, 12, 0, 1, 2, 3, 4,  // CTA_ID
            ]
        #expect(Ctnetlink.delete(entry, sequence: 7) == expected)
    }

    @Test func `an entry is read back, and what is not TCP or cut short is none`() {
        let attributes: [UInt8] =
            [52, 0, 1, 0x80] + Self.tupleOctets + [52, 0, 2, 0x80] + Self.tupleOctets + [
                8, 0, 3, 0, 0, 0, 1, 0x8e,  // CTA_STATUS
                16, 0, 4, 0x80, 12, 0, 1, 0x80, 5, 0, 1, 0, 3, 0, 0, 0,  // CTA_PROTOINFO, TCP, state ESTABLISHED
                8, 0, 7, 0, 0, 6, 0x97, 0x80,  // CTA_TIMEOUT
                8, 0, 8, 0, 0, 0, 0, 5,  // CTA_MARK
                8, 0, 12, 0, 1, 2, 3, 4,  // CTA_ID
                28, 0, 9, 0x80, 12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 12, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0,  // counters
            ]
        let entry = ConnectionEntry(attributes: attributes.span)
        #expect(
            entry
                == ConnectionEntry(
                    original: Self.tuple, reply: Self.tuple, state: .established, mark: 5, timeout: 432_000,
                    id: 0x0102_0304, status: 0x18e, originalCount: TrafficCount(packets: 7, octets: 1 << 32)))
        #expect(entry?.isAssured == true)
        #expect(entry?.isClosedByInitiator == false)
        let closing: [UInt8] =
            [52, 0, 1, 0x80] + Self.tupleOctets + [52, 0, 2, 0x80] + Self.tupleOctets + [
                32, 0, 4, 0x80, 28, 0, 1, 0x80, 5, 0, 1, 0, 5, 0, 0, 0,  // CTA_PROTOINFO, TCP, state CLOSE_WAIT
                6, 0, 4, 0, 0x27, 0, 0, 0, 6, 0, 5, 0, 0x23, 0, 0, 0,  // CLOSE_INIT in the original direction
            ]
        #expect(ConnectionEntry(attributes: closing.span)?.isClosedByInitiator == true)
        var reply = closing
        (reply[reply.count - 12], reply[reply.count - 4]) = (0x23, 0x27)
        #expect(ConnectionEntry(attributes: reply.span)?.state == .closeWait)
        #expect(ConnectionEntry(attributes: reply.span)?.isClosedByInitiator == false)
        #expect(entry?.hasReply == true)
        var udp = attributes
        udp[32] = 17
        #expect(ConnectionEntry(attributes: udp.span) == nil)
        for length in attributes.indices {
            let cut = Array(attributes[..<length])
            let entry = ConnectionEntry(attributes: cut.span)
            #expect(length >= 104 || entry == nil)
        }
    }

    @Test func `errors say what to do`() {
        #expect(ConntrackError(.delete, errno: 1).description.hasSuffix("as root or grant it CAP_NET_ADMIN."))
        #expect(ConntrackError(.open, errno: 93).isFeatureAbsent)
        #expect(ConntrackError(.open, errno: 93).description.contains("nf_conntrack_netlink"))
        #expect(!ConntrackError(.delete, errno: 2).isFeatureAbsent)
        #expect(
            ConntrackError(.look, tuple: Self.tuple, errno: 16).description
                == "Conntrack, connection 198.18.1.2:4660→198.18.2.2:80, cannot be looked up while a flowtable "
                + "carries it: take this connection out of the flowtable.")
    }
}
