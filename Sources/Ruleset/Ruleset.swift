// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// The whole of our nftables table as one value. It is printed as nft text (`text()`) and encoded as netlink messages
/// from this value, so that the two cannot differ.
///
/// Chains and rules are made once; from then on only elements of sets and maps change, and with the first and last element
/// of some the rules of base chains that look for one (`Entrances`). So the cost per packet and per change does not grow with the number
/// of sessions, and no change unregisters a hook.
public struct Ruleset: Hashable, Sendable {
    /// Number of this layout of the table. It changes when elements of an older table would mean something else.
    public static let schemaVersion = 3

    /// The table's name in family `inet`.
    public let tableName: String
    /// Sets and maps, in the order of definition.
    public let sets: [NamedSet]
    /// Whether the kernel carries connections by itself: see `RulesetOptions.carries`.
    public let carries: Bool
    /// Chains, in the order of definition; regular chains come before the base chains that lead to them. All entrances are
    /// open in them.
    public let chains: [Chain]

    /// The table for these options.
    public init(_ options: RulesetOptions) {
        tableName = options.tableName
        carries = options.carries
        sets = SetName.Purpose.allCases.flatMap { purpose in
            AddressFamily.allCases.map { SetName(purpose, $0) }
        }.filter { !$0.purpose.isOfMarks || options.carries && SetName.ofMarks.contains($0) }.map { NamedSet($0) }
        chains = Self.chains(options)
    }

    /// What the table says of itself: product, schema version, and a hash of everything else in it. Two tables with
    /// the same comment hold the same sets, chains and rules.
    public var comment: String {
        // FNV-1a, 64 bits: it finds an accidental difference; nobody can gain by forging it.
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for octet in text(comment: nil).utf8 { hash = (hash ^ UInt64(octet)) &* 0x100_0000_01b3 }
        let digits = String(hash, radix: 16)
        return "nfqmigd \(Self.schemaVersion) " + String(repeating: "0", count: 16 - digits.count) + digits
    }

    private static func chains(_ options: RulesetOptions) -> [Chain] {
        let families = AddressFamily.allCases
        let regular: [Chain] =
            [
                Chain(.enqueue, rules: [[.queue(first: options.firstQueue, count: options.queueCount)]]),
                Chain(.guarding, rules: [[.isTCP, .rejectWithTCPReset]]),
                // The kernel tracks connections in a network namespace while some rule there has to do with them
                // (nft_nat_init → nf_ct_netns_get). And one that cannot translate says so when the table is made.
                Chain(
                    .tracking,
                    rules: families.map { [.translateDestination(asSent($0), map: SetName(.connection, $0))] }),
            ]
            + families.map(learn) + families.map { translateDestination($0, options) }
            + families.map { translateSource($0, options) }
            + families.map { involved($0, options) } + families.map { answering($0, options) }
        return regular + [
            preroutingRaw(families),
            preroutingNAT(SetName.ofNAT),
            // Our own segments, and the RST of chain `guarding`, belong to no connection that the gateway knows.
            // Untracked, they cannot be `ct state invalid` to anybody's firewall, nor change an entry.
            Chain(
                .output, hook: BaseHook(.filter, .output, priority: -300),
                rules: [[.hasMark(options.mark), .notrack, .accept]]
                    + families.map { [.isIn(asSent($0), set: SetName(.guarded, $0)), .notrack] }),
            postrouting(families),
            postroutingNAT(SetName.ofNAT),
        ]
    }

    /// The packet has its new destination, the host, so the host's replies are the turned four-tuple.
    private static func learn(_ family: AddressFamily) -> Chain {
        Chain(
            .learn(family),
            rules: [
                [.update(set: SetName(.replies, family), look(family, .daddr, .dport, .saddr, .sport))],
                [.update(set: SetName(.icmpPeer, family), look(family, .saddr))],
                [.setMark(0)],
            ])
    }

    /// Back from user space, on the way to a host, or carried there by the kernel alone. The first rule is for nearly all packets;
    /// those that user space has rewritten have number 0. What the maps do not have must not go on to where it was sent.
    private static func translateDestination(_ family: AddressFamily, _ options: RulesetOptions) -> Chain {
        let fields: [Statement] = [
            .setField(family, .daddr, map: SetName(.endpointAddress, family)),
            .setField(family, .dport, map: SetName(.endpointPort, family)),
        ]
        return Chain(
            .translateDestination(family),
            rules: [
                [.hasMarkBits(0, mask: MarkLayout.learns | MarkLayout.changesClientPort)] + fields + [
                    .setMark(0), .accept,
                ],
                [.hasMarkBits(0, mask: MarkLayout.translation), .goTo(.learn(family))],
            ] + remember(.carried, family, options) + [
                [changesClientPort, .setField(family, .sport, map: SetName(.clientPort, family))],
                [learns] + fields + [.goTo(.learn(family))],
                fields + [.setMark(0), .accept],
                [.drop],
            ])
    }

    /// Back from user space, on the way to a client, or carried there by the kernel alone; or a segment of our own.
    private static func translateSource(_ family: AddressFamily, _ options: RulesetOptions) -> Chain {
        Chain(
            .translateSource(family),
            rules: remember(.carriedReplies, family, options) + [
                [changesClientPort, .setField(family, .dport, map: SetName(.clientPort, family))],
                [
                    .setField(family, .saddr, map: SetName(.endpointAddress, family)),
                    .setField(family, .sport, map: SetName(.endpointPort, family)), .setMark(0), .accept,
                ],
                [.hasMark(options.mark), .accept],
                [.drop],
            ])
    }

    /// To an address that some element is about. What is in transit comes before what the kernel carries; otherwise the order
    /// of the sets that lead to a queue is that of what they cost and of how much comes.
    private static func involved(_ family: AddressFamily, _ options: RulesetOptions) -> Chain {
        let transit: [Statement] = [.isIn(asSent(family), set: SetName(.divert, family)), .goTo(.enqueue)]
        let ofClient: [Statement] = [
            .isIn(look(family, .saddr, .daddr, .dport), set: SetName(.divertClient, family)), .goTo(.enqueue),
        ]
        let carried = recall(.carried, family, options, .translateDestination(family))
        return Chain(
            .involved(family),
            rules: [[isDecided(options), .goTo(.translateDestination(family))]]
                + forget(.carried, family, options)
                + (carried.isEmpty ? [ofClient, transit] : [transit] + carried + [ofClient]) + [
                    [.isIn(asSent(family), set: SetName(.divertConnection, family)), .goTo(.enqueue)],
                    [.isIn(look(family, .daddr, .dport), set: SetName(.divertService, family)), .goTo(.enqueue)],
                    [.isIn(asSent(family), set: SetName(.guard, family)), .goTo(.guarding)],
                    [
                        .isSYN, .isIn(look(family, .saddr, .daddr, .dport), set: SetName(.credit, family)),
                        .goTo(.enqueue),
                    ],
                    [
                        .isICMPError(family), .isIn(look(family, .daddr), set: SetName(.icmpHome, family)),
                        .goTo(.enqueue),
                    ],
                ])
    }

    /// From a host whose replies user space rewrites.
    private static func answering(_ family: AddressFamily, _ options: RulesetOptions) -> Chain {
        Chain(
            .answering(family),
            rules: [[isDecided(options), .goTo(.translateSource(family))]]
                + forget(.carriedReplies, family, options)
                + recall(.carriedReplies, family, options, .translateSource(family)) + [
                    [.isIn(asSent(family), set: SetName(.replies, family)), .goTo(.enqueue)],
                    errorsToPeer(family),
                ])
    }

    // What the kernel carries by itself. A SYN, in either direction, is always user space's, and the kernel has nothing left
    // of the connection that had this four-tuple before when it learns from it.

    /// Whether it does so for connections of this family.
    public func carries(_ family: AddressFamily) -> Bool {
        carries && SetName.ofMarks.contains(SetName(.carried, family))
    }

    private static func carries(_ purpose: SetName.Purpose, _ family: AddressFamily, _ options: RulesetOptions) -> Bool
    {
        options.carries && SetName.ofMarks.contains(SetName(purpose, family))
    }

    private static func forget(
        _ purpose: SetName.Purpose, _ family: AddressFamily, _ options: RulesetOptions
    ) -> [[Statement]] {
        guard carries(purpose, family, options) else { return [] }
        return [[.hasSYN, .forget(map: SetName(purpose, family), asSent(family))]]
    }

    private static func recall(
        _ purpose: SetName.Purpose, _ family: AddressFamily, _ options: RulesetOptions, _ chain: ChainName
    ) -> [[Statement]] {
        guard carries(purpose, family, options) else { return [] }
        return [[.recall(asSent(family), map: SetName(purpose, family)), .goTo(chain)]]
    }

    private static func remember(
        _ purpose: SetName.Purpose, _ family: AddressFamily, _ options: RulesetOptions
    ) -> [[Statement]] {
        guard carries(purpose, family, options) else { return [] }
        return [[learns, .remember(map: SetName(purpose, family), asSent(family))]]
    }

    static func errorsToPeer(_ family: AddressFamily) -> [Statement] {
        [.isICMPError(family), .isIn(look(family, .daddr), set: SetName(.icmpPeer, family)), .goTo(.enqueue)]
    }

    private static func isDecided(_ options: RulesetOptions) -> Statement {
        .hasMarkBits(options.mark, mask: MarkLayout.tag)
    }

    private static var learns: Statement { .hasMarkBits(MarkLayout.learns, mask: MarkLayout.learns) }

    private static var changesClientPort: Statement {
        .hasMarkBits(MarkLayout.changesClientPort, mask: MarkLayout.changesClientPort)
    }

    private static func look(_ family: AddressFamily, _ fields: PacketField...) -> PacketKey {
        PacketKey(family, fields)
    }

    private static func asSent(_ family: AddressFamily) -> PacketKey {
        look(family, .saddr, .sport, .daddr, .dport)
    }
}
