// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc
package import Wire

// Conntrack's netlink messages (net/netfilter/nf_conntrack_netlink.c): requests written, entries read. TCP only.

/// Numbers of linux/netfilter headers, as the types that the messages want.
package enum Ctnetlink {
    static let subsystem = UInt16(NFNL_SUBSYS_CTNETLINK) << 8
    static let new = subsystem | UInt16(IPCTNL_MSG_CT_NEW.rawValue)
    static let get = subsystem | UInt16(IPCTNL_MSG_CT_GET.rawValue)
    static let delete = subsystem | UInt16(IPCTNL_MSG_CT_DELETE.rawValue)

    static func family(_ family: AddressFamily) -> UInt8 { UInt8(family == .ipv4 ? AF_INET : AF_INET6) }

    /// Asks for all TCP entries of a family, only those that `client` has originated if it is given.
    ///
    /// The kernel filters since Linux 5.8 (CTA_FILTER); older ones send everything, so the reader looks once more. The
    /// filter's bits are those of the kernel's nf_internals.h: 1 source address, 8 protocol. Not by IPv6 address: Linux
    /// 6.18 leaves out just the entries that match (`ctnetlink_filter_match_tuple` has that comparison inverted).
    package static func list(_ family: AddressFamily, client: IPAddress?, sequence: UInt32) -> [UInt8] {
        let client = family == .ipv4 ? client : nil
        var message = MessageWriter(
            type: get, flags: UInt16(NLM_F_REQUEST | NLM_F_DUMP), sequence: sequence, family: self.family(family))
        message.nest(CTA_FILTER.rawValue) {
            $0.put(CTA_FILTER_ORIG_FLAGS.rawValue, host: client == nil ? 1 << 3 : 1 << 3 | 1 << 0)
        }
        message.nest(CTA_TUPLE_ORIG.rawValue) { tuple in
            tuple.nest(CTA_TUPLE_IP.rawValue) { ip in
                guard let client else { return }
                ip.put(client.family == .ipv4 ? CTA_IP_V4_SRC.rawValue : CTA_IP_V6_SRC.rawValue, client.octets)
            }
            tuple.nest(CTA_TUPLE_PROTO.rawValue) { $0.put(CTA_PROTO_NUM.rawValue, [UInt8(IPPROTO_TCP)]) }
        }
        return message.finished
    }

    /// Asks for the entry of one tuple in one direction. Answered with the entry, or with an error: nothing follows.
    package static func look(_ tuple: FourTuple, isReply: Bool, zone: UInt16, sequence: UInt32) -> [UInt8] {
        var message = MessageWriter(
            type: get, flags: UInt16(NLM_F_REQUEST), sequence: sequence,
            family: family(tuple.source.address.family))
        message.put(tuple, as: isReply ? CTA_TUPLE_REPLY.rawValue : CTA_TUPLE_ORIG.rawValue)
        if zone != 0 { message.put(CTA_ZONE.rawValue, network: zone) }
        return message.finished
    }

    /// Deletes exactly this entry: the identifier keeps a newer one of the same tuple from harm.
    package static func delete(_ entry: ConnectionEntry, sequence: UInt32) -> [UInt8] {
        var message = MessageWriter(
            type: delete, flags: UInt16(NLM_F_REQUEST | NLM_F_ACK), sequence: sequence,
            family: family(entry.original.source.address.family))
        message.put(entry.original, as: CTA_TUPLE_ORIG.rawValue)
        if entry.zone != 0 { message.put(CTA_ZONE.rawValue, network: entry.zone) }
        message.put(CTA_ID.rawValue, network: entry.id)
        return message.finished
    }
}

extension MessageWriter {
    fileprivate mutating func put(_ tuple: FourTuple, as type: some BinaryInteger) {
        let isIPv4 = tuple.source.address.family == .ipv4
        nest(type) { message in
            message.nest(CTA_TUPLE_IP.rawValue) {
                $0.put(isIPv4 ? CTA_IP_V4_SRC.rawValue : CTA_IP_V6_SRC.rawValue, tuple.source.address.octets)
                $0.put(isIPv4 ? CTA_IP_V4_DST.rawValue : CTA_IP_V6_DST.rawValue, tuple.destination.address.octets)
            }
            message.nest(CTA_TUPLE_PROTO.rawValue) {
                $0.put(CTA_PROTO_NUM.rawValue, [UInt8(IPPROTO_TCP)])
                $0.put(CTA_PROTO_SRC_PORT.rawValue, network: tuple.source.port)
                $0.put(CTA_PROTO_DST_PORT.rawValue, network: tuple.destination.port)
            }
        }
    }
}

extension ConnectionEntry {
    /// Reads an entry from a message's attributes; nil when it is not TCP or lacks a tuple.
    package init?(attributes: Span<UInt8>) {
        var original: FourTuple?
        var reply: FourTuple?
        var entry = ConnectionEntry(original: .unread, reply: .unread)
        var reader = AttributeReader(attributes)
        while let attribute = reader.next() {
            let value = attribute.value
            switch UInt32(attribute.type) {
            case CTA_TUPLE_ORIG.rawValue:
                original = FourTuple(attributes: value)
                if original == nil { return nil }
            case CTA_TUPLE_REPLY.rawValue: reply = FourTuple(attributes: value)
            case CTA_PROTOINFO.rawValue:
                let details = TCPDetails(protocolInformation: value)
                entry.state = details.state
                entry.isClosedByInitiator = details.isClosedByInitiator
            case CTA_ZONE.rawValue: entry.zone = value.networkInteger()
            case CTA_MARK.rawValue: entry.mark = value.networkInteger()
            case CTA_TIMEOUT.rawValue: entry.timeout = value.networkInteger()
            case CTA_ID.rawValue: entry.id = value.networkInteger()
            case CTA_STATUS.rawValue: entry.status = value.networkInteger()
            case CTA_COUNTERS_ORIG.rawValue: entry.originalCount = TrafficCount(attributes: value)
            case CTA_COUNTERS_REPLY.rawValue: entry.replyCount = TrafficCount(attributes: value)
            case CTA_TIMESTAMP.rawValue:
                var inner = AttributeReader(value)
                while let field = inner.next() {
                    guard UInt32(field.type) == CTA_TIMESTAMP_START.rawValue else { continue }
                    entry.startedAt = field.value.networkInteger()
                }
            default: break
            }
        }
        guard let original, let reply else { return nil }
        entry.original = original
        entry.reply = reply
        self = entry
    }
}

extension FourTuple {
    fileprivate static let unread = FourTuple(
        source: Endpoint(address: .v4(IPv4Address(rawValue: 0)), port: 0),
        destination: Endpoint(address: .v4(IPv4Address(rawValue: 0)), port: 0))

    /// Reads CTA_TUPLE_IP and CTA_TUPLE_PROTO; nil when it is not TCP.
    fileprivate init?(attributes: Span<UInt8>) {
        var source: IPAddress?
        var destination: IPAddress?
        var ports: (source: UInt16, destination: UInt16) = (0, 0)
        var isTCP = false
        var reader = AttributeReader(attributes)
        while let attribute = reader.next() {
            var inner = AttributeReader(attribute.value)
            switch UInt32(attribute.type) {
            case CTA_TUPLE_IP.rawValue:
                while let field = inner.next() {
                    switch UInt32(field.type) {
                    case CTA_IP_V4_SRC.rawValue, CTA_IP_V6_SRC.rawValue: source = IPAddress(span: field.value)
                    case CTA_IP_V4_DST.rawValue, CTA_IP_V6_DST.rawValue: destination = IPAddress(span: field.value)
                    default: break
                    }
                }
            case CTA_TUPLE_PROTO.rawValue:
                while let field = inner.next() {
                    switch UInt32(field.type) {
                    case CTA_PROTO_NUM.rawValue: isTCP = field.value.networkInteger(UInt8.self) == UInt8(IPPROTO_TCP)
                    case CTA_PROTO_SRC_PORT.rawValue: ports.source = field.value.networkInteger()
                    case CTA_PROTO_DST_PORT.rawValue: ports.destination = field.value.networkInteger()
                    default: break
                    }
                }
            default: break
            }
        }
        guard isTCP, let source, let destination else { return nil }
        self.init(
            source: Endpoint(address: source, port: ports.source),
            destination: Endpoint(address: destination, port: ports.destination))
    }
}

extension IPAddress {
    /// The octets of an address, without an array.
    fileprivate init?(span: Span<UInt8>) {
        switch span.count {
        case 4: self = .v4(IPv4Address(rawValue: span.networkInteger()))
        case 16:
            self = .v6(
                IPv6Address(
                    high: span.extracting(0..<8).networkInteger(), low: span.extracting(8..<16).networkInteger()))
        default: return nil
        }
    }
}

/// What CTA_PROTOINFO_TCP says of a connection.
private struct TCPDetails {
    /// IP_CT_TCP_FLAG_CLOSE_INIT (linux/netfilter/nf_conntrack_tcp.h): this direction has sent the first FIN.
    private static let closeInitiated: UInt8 = 0x04

    var state: TCPState?
    var isClosedByInitiator = false

    init(protocolInformation: Span<UInt8>) {
        var reader = AttributeReader(protocolInformation)
        while let attribute = reader.next() {
            guard attribute.type == UInt16(CTA_PROTOINFO_TCP.rawValue) else { continue }
            var inner = AttributeReader(attribute.value)
            while let field = inner.next() {
                switch UInt32(field.type) {
                case CTA_PROTOINFO_TCP_STATE.rawValue: state = TCPState(rawValue: field.value.networkInteger())
                case CTA_PROTOINFO_TCP_FLAGS_ORIGINAL.rawValue:
                    // struct nf_ct_tcp_flags: flags, mask.
                    guard field.value.count == 2 else { continue }
                    isClosedByInitiator = field.value[0] & Self.closeInitiated != 0
                default: break
                }
            }
        }
    }
}

extension TrafficCount {
    fileprivate init(attributes: Span<UInt8>) {
        self.init(packets: 0, octets: 0)
        var reader = AttributeReader(attributes)
        while let attribute = reader.next() {
            switch UInt32(attribute.type) {
            case CTA_COUNTERS_PACKETS.rawValue: packets = attribute.value.networkInteger()
            case CTA_COUNTERS_BYTES.rawValue: octets = attribute.value.networkInteger()
            default: break
            }
        }
    }
}
