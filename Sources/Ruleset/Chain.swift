// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// A chain's name. `queue` itself is a keyword of nft and cannot be one.
public enum ChainName: String, Hashable, Sendable, CaseIterable {
    case enqueue
    case guarding = "guard"
    case tracking
    case learn4
    case learn6
    case translateDestination4 = "translate_destination4"
    case translateDestination6 = "translate_destination6"
    case translateSource4 = "translate_source4"
    case translateSource6 = "translate_source6"
    case involved4
    case involved6
    case answering4
    case answering6
    case preroutingRaw = "prerouting_raw"
    case preroutingNAT = "prerouting_nat"
    case output
    case postrouting
    case postroutingNAT = "postrouting_nat"

    static func learn(_ family: AddressFamily) -> ChainName { family == .ipv4 ? .learn4 : .learn6 }
    static func translateDestination(_ family: AddressFamily) -> ChainName {
        family == .ipv4 ? .translateDestination4 : .translateDestination6
    }
    static func translateSource(_ family: AddressFamily) -> ChainName {
        family == .ipv4 ? .translateSource4 : .translateSource6
    }
    static func involved(_ family: AddressFamily) -> ChainName { family == .ipv4 ? .involved4 : .involved6 }
    static func answering(_ family: AddressFamily) -> ChainName { family == .ipv4 ? .answering4 : .answering6 }
}

/// Where a base chain hangs in the packet's path.
public struct BaseHook: Hashable, Sendable {
    /// The chain's type.
    public enum Kind: String, Hashable, Sendable {
        case filter
        case nat
    }

    /// The hook. The raw values are the kernel's numbers (enum nf_inet_hooks).
    public enum Point: UInt32, Hashable, Sendable {
        case prerouting = 0
        case output = 3
        case postrouting = 4
    }

    public let kind: Kind
    public let point: Point
    /// Lower runs earlier; -200 is conntrack, -100 destination NAT, 100 source NAT.
    public let priority: Int32

    init(_ kind: Kind, _ point: Point, priority: Int32) {
        self.kind = kind
        self.point = point
        self.priority = priority
    }
}

extension ChainName {
    /// Chains that are made when a rule of theirs is first needed.
    public static let ofNAT: Set<ChainName> = [.preroutingNAT, .postroutingNAT]
}

/// A chain with its rules. The policy of a base chain is accept.
public struct Chain: Hashable, Sendable {
    public let name: ChainName
    /// nil for a regular chain, which only jumps lead to.
    public let hook: BaseHook?
    /// Each rule is a row of statements; the first that does not hold ends it.
    public let rules: [[Statement]]

    init(_ name: ChainName, hook: BaseHook? = nil, rules: [[Statement]]) {
        self.name = name
        self.hook = hook
        self.rules = rules
    }
}

/// A field of a packet's IP or TCP header.
public enum PacketField: String, Hashable, Sendable {
    case saddr
    case daddr
    case sport
    case dport
}

/// Fields of a packet, concatenated to the key of a look-up. A packet of another family, and one that is not TCP where
/// a port is asked for, does not match.
public struct PacketKey: Hashable, Sendable {
    public let family: AddressFamily
    public let fields: [PacketField]

    init(_ family: AddressFamily, _ fields: [PacketField]) {
        self.family = family
        self.fields = fields
    }

    /// Whether a field is in the TCP header.
    public var needsTCP: Bool { fields.contains { $0 == .sport || $0 == .dport } }
}

/// What a rule can say in our table: matches that let it go on, and actions.
public enum Statement: Hashable, Sendable {
    /// The packet has this fwmark.
    case hasMark(UInt32)
    /// Of the packet's fwmark, the bits of the mask are these.
    case hasMarkBits(UInt32, mask: UInt32)
    /// The packet is TCP.
    case isTCP
    /// The packet is a TCP segment with SYN, whatever other flags it has.
    case hasSYN
    /// The packet is a TCP segment that opens a connection: SYN without ACK, RST or FIN.
    case isSYN
    /// The packet is an ICMP error of this family, which quotes the packet it is about (RFC 792; RFC 4443 section 2.1).
    case isICMPError(AddressFamily)
    /// The key is in a set.
    case isIn(PacketKey, set: SetName)
    /// Puts the key into a set, or starts its time-out anew.
    case update(set: SetName, PacketKey)
    /// Puts the packet's translation (`MarkLayout.translation`, with `changesClientPort`) into a map, under the key, unless the key
    /// has one; then it only starts the time-out anew.
    case remember(map: SetName, PacketKey)
    /// Takes the key out of such a map.
    case forget(map: SetName, PacketKey)
    /// Gives the packet the fwmark that a map has for the key.
    case recall(PacketKey, map: SetName)
    /// Destination NAT to the address and port that a map has for the key.
    case translateDestination(PacketKey, map: SetName)
    /// Source NAT to the address and port that a map has for the four-tuple with which the connection's first packet came,
    /// before any translation.
    case translateSource(AddressFamily, map: SetName)
    /// Writes what a map has for the translation that the packet's fwmark names (`MarkLayout.translation`) into a field, and
    /// keeps the checksums true.
    case setField(AddressFamily, PacketField, map: SetName)
    /// Gives the packet this fwmark.
    case setMark(UInt32)
    /// Keeps conntrack from looking at the packet.
    case notrack
    /// Goes to a chain and does not come back.
    case goTo(ChainName)
    /// Ends this hook's chain; the packet goes on.
    case accept
    /// The packet is gone.
    case drop
    /// Hands the packet to one of `count` queues from `first`, chosen by address hash, so that a connection's packets
    /// stay in order. Without a listener the packet is dropped.
    case queue(first: UInt16, count: UInt16)
    /// Drops the segment and answers it with a RST (RFC 9293 section 3.10.7.1).
    case rejectWithTCPReset

    /// The set or map that it looks a key up in, if it does.
    public var lookedUp: SetName? {
        switch self {
        case .isIn(_, let set), .recall(_, let set), .translateDestination(_, let set), .translateSource(_, let set),
            .setField(_, _, let set):
            set
        default: nil
        }
    }

    /// The types of ICMP errors: destination unreachable, time exceeded, parameter problem; for ICMPv6 also packet too
    /// big. The numbers, ascending, with nft's names.
    public static func icmpErrorTypes(_ family: AddressFamily) -> [(type: UInt8, keyword: String)] {
        switch family {
        case .ipv4:
            [(3, "destination-unreachable"), (11, "time-exceeded"), (12, "parameter-problem")]
        case .ipv6:
            [
                (1, "destination-unreachable"), (2, "packet-too-big"), (3, "time-exceeded"), (4, "parameter-problem"),
            ]
        }
    }
}
