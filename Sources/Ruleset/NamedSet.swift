// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// nft's data types, as far as our table uses them.
public enum DataType: UInt32, Hashable, Sendable {
    // The numbers are nft's own (enum datatypes in nftables' include/datatype.h); the kernel keeps them for nft.
    case ipv4Address = 7
    case ipv6Address = 8
    case service = 13
    case mark = 19

    /// The address type of a family.
    public init(addressOf family: AddressFamily) {
        self = family == .ipv4 ? .ipv4Address : .ipv6Address
    }

    /// The word that nft uses.
    public var keyword: String {
        switch self {
        case .ipv4Address: "ipv4_addr"
        case .ipv6Address: "ipv6_addr"
        case .service: "inet_service"
        case .mark: "mark"
        }
    }

    /// Octets of a value by itself.
    public var length: Int {
        switch self {
        case .service: 2
        case .ipv4Address, .mark: 4
        case .ipv6Address: 16
        }
    }

    /// Octets in a concatenation: each part is padded at its end to whole 32-bit registers.
    public var paddedLength: Int {
        switch self {
        case .ipv4Address, .service, .mark: 4
        case .ipv6Address: 16
        }
    }
}

/// The name of a set or map: what it is for, and the family of its addresses.
public struct SetName: Hashable, Sendable, CustomStringConvertible {
    /// What membership means. The raw values are the names without the family.
    public enum Purpose: String, Hashable, Sendable, CaseIterable {
        /// Set: destination addresses of packets that one of the following, down to `divertService`, or `icmpHome`, may have. What
        /// goes elsewhere is not looked at any further.
        case involved
        /// Set: four-tuples that go to a queue before anything else is asked: transit of an old connection.
        case divert
        /// Map: four-tuple client → home, to the mark (`MarkLayout`) of what the kernel writes: connections of datapath `queue` as
        /// user space has judged their SYN. Only where the ruleset carries them (`RulesetOptions.carries`).
        case carried
        /// Set: four-tuples of from-hosts that may speak again: chain `guard`.
        case `guard`
        /// Set: client, home. Clients some of whose connections have moved: their SYNs wait for a decision.
        case credit
        /// Set: four-tuples of connections that user space carries, or tells the kernel to.
        case divertConnection = "divert_connection"
        /// Set: client, home. Clients all of whose connections user space carries.
        case divertClient = "divert_client"
        /// Set: home. Homes all of whose clients' connections user space carries.
        case divertService = "divert_service"
        /// Map: four-tuple client → home, to host. New connections that the kernel's NAT carries.
        case connection
        /// Map: client, home, to host. The same for all connections of a client.
        case client
        /// Map: home, to host. The same for the connections of every client.
        case service
        /// Map: four-tuple client → home, to the client's endpoint as the host is to see it. Only where a controller has said so.
        case source
        /// Set: four-tuples of the kernel's own RSTs, towards the host that is guarded against.
        case guarded
        /// Set: four-tuples host → client of connections that user space rewrites; learnt from packets.
        case replies
        /// Map: four-tuple host → client, to a mark, as `carried`: the replies.
        case carriedReplies = "carried_replies"
        /// Set: addresses of hosts whose replies user space rewrites: what comes from elsewhere is not looked up in `replies`.
        case answering
        /// Set: homes of connections that user space rewrites; ICMP errors for them quote a rewritten packet.
        case icmpHome = "icmp_home"
        /// Set: clients of such connections; learnt from packets too.
        case icmpPeer = "icmp_peer"
        /// Map: translation → address, which the kernel writes as the destination of a client's segment, or as the source of
        /// a host's.
        case endpointAddress = "endpoint_address"
        /// Map: translation → port, likewise.
        case endpointPort = "endpoint_port"
        /// Map: translation → port, which the kernel writes as the client's.
        case clientPort = "client_port"
    }

    public let purpose: Purpose
    public let family: AddressFamily

    /// Those that only the kernel fills, from marks. Of IPv4: a key of IPv6 leaves nft (1.0.6) no register for the value when it
    /// reads the rule, so that nobody could load a saved ruleset again.
    public static let ofMarks = [SetName(.carried, .ipv4), SetName(.carriedReplies, .ipv4)]

    public init(_ purpose: Purpose, _ family: AddressFamily) {
        self.purpose = purpose
        self.family = family
    }

    /// The name in the kernel, for instance `divert4`.
    public init?(_ description: some StringProtocol) {
        guard let digit = description.last?.wholeNumberValue, let octet = UInt8(exactly: digit),
            let family = AddressFamily(rawValue: octet), let purpose = Purpose(rawValue: String(description.dropLast()))
        else { return nil }
        self.init(purpose, family)
    }

    /// The name in the kernel, for instance `divert4`.
    public var description: String { "\(purpose.rawValue)\(family.rawValue)" }
}

extension SetName.Purpose {
    /// See `NamedSet.isOfMarks`.
    public var isOfMarks: Bool { self == .carried || self == .carriedReplies }
}

/// The definition of a set or map.
public struct NamedSet: Hashable, Sendable {
    /// What a key maps to.
    public enum Value: Hashable, Sendable {
        /// Nothing: a set.
        case none
        /// A concatenation of these.
        case data([DataType])
    }

    public let name: SetName
    /// The key: one type or a concatenation.
    public let key: [DataType]
    public let value: Value
    /// Whether rules add elements (nft: `flags dynamic`).
    public let isDynamic: Bool
    /// The time-out, in seconds, of elements that come without one; nil: for ever.
    public let timeout: UInt32?
    /// Whether the kernel alone keeps it, from marks: it has no `TableElement`s, and the daemon only lets it forget.
    public var isOfMarks: Bool { name.purpose.isOfMarks }
    /// The most elements; nil: as many as fit into memory.
    public let size: UInt32?

    // Every set takes time-outs of single elements: that costs nothing where none has one.
    init(_ name: SetName) {
        let address = DataType(addressOf: name.family)
        let fourTuple = [address, .service, address, .service]
        self.name = name
        switch name.purpose {
        case .divert, .divertConnection, .guard, .connection, .source, .guarded, .replies, .carried, .carriedReplies:
            key = fourTuple
        case .credit, .divertClient, .client: key = [address, address, .service]
        case .divertService, .service: key = [address, .service]
        case .involved, .answering, .icmpHome, .icmpPeer: key = [address]
        case .endpointAddress, .endpointPort, .clientPort: key = [.mark]
        }
        switch name.purpose {
        case .connection, .client, .service, .source: value = .data([address, .service])
        case .endpointAddress: value = .data([address])
        case .endpointPort, .clientPort: value = .data([.service])
        case .carried, .carriedReplies: value = .data([.mark])
        case .involved, .divert, .divertConnection, .guard, .credit, .divertClient, .divertService, .guarded, .replies,
            .answering, .icmpHome, .icmpPeer:
            value = .none
        }
        isDynamic = name.purpose == .replies || name.purpose == .icmpPeer || name.purpose.isOfMarks
        // Replies: as long as conntrack remembers an idle established connection (nf_conntrack_tcp_timeout_established). What
        // is carried can be asked for again at any time. The kernel wants a bound for a set that packets fill.
        switch name.purpose {
        case .replies: (timeout, size) = (5 * 86_400, 262_144)
        case .icmpPeer: (timeout, size) = (5 * 86_400, 65_536)
        case .carried, .carriedReplies: (timeout, size) = (300, 262_144)
        default: (timeout, size) = (nil, nil)
        }
    }

    /// Octets of a key in the kernel.
    public var keyLength: Int { key.reduce(0) { $0 + $1.paddedLength } }
}
