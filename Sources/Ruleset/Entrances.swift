// SPDX-License-Identifier: GPL-3.0-or-later

internal import Wire

/// What decides which rules our base chains have. Every packet of the gateway meets these chains, so a rule that could find
/// nothing is not there.
///
/// Only through the sets `involved` and `answering` a packet comes to any other rule. The rule that looks into one of them stands
/// while the set has an element: where nothing is in user space's care, a packet meets two empty chains. The two nat chains, which
/// make every new connection one that might be translated, and every packet ask whether it is, come with the first element of a map
/// that they look into, and a rule with the first of its own. Nobody notices the last one go: for that, all keys of such a map would have
/// to be known here too. Whoever writes the rules without knowing what they were may leave out those whose maps are empty then.
///
/// No base chain ever goes. Unregistering its hook would drop the packets that wait in every queue of the network
/// namespace (nf_unregister_net_hook → nf_queue_nf_hook_drop); a rule can come and go.
public struct Entrances: Hashable, Sendable {
    /// What is in the sets whose last element counts.
    private var addresses: [SetName: Set<IPAddress>] = [:]
    /// The maps of the nat chains that have, or have had, an element.
    private var translating: Set<SetName>

    /// Of a table with these elements; those of other sets than `SetName.entrances` and `SetName.ofNAT` are passed over.
    /// `translating`: maps of the nat chains that have elements besides.
    public init(_ elements: some Sequence<TableElement>, translating: Set<SetName> = []) {
        self.translating = translating
        for element in elements { insert(element) }
    }

    /// The sets and maps that are to be looked into.
    public var open: Set<SetName> { translating.union(addresses.keys) }

    /// Follows a change of the table: removals, then additions.
    public mutating func apply(_ change: TableChange) {
        for element in change.remove { remove(element) }
        for addition in change.add { insert(addition.element) }
    }

    /// Whether a change can make any difference.
    public static func concern(_ change: TableChange) -> Bool {
        change.remove.contains { place(of: $0) != nil }
            || change.add.contains { place(of: $0.element) != nil || $0.element.set.isOfNAT }
    }

    private mutating func insert(_ element: TableElement) {
        if let (set, address) = Self.place(of: element) {
            addresses[set, default: []].insert(address)
        } else if element.set.isOfNAT {
            translating.insert(element.set)
        }
    }

    private mutating func remove(_ element: TableElement) {
        guard let (set, address) = Self.place(of: element) else { return }
        addresses[set]?.remove(address)
        if addresses[set]?.isEmpty == true { addresses[set] = nil }
    }

    private static func place(of element: TableElement) -> (set: SetName, address: IPAddress)? {
        switch element {
        case .involved(let address): (SetName(.involved, address.family), address)
        case .answering(let address): (SetName(.answering, address.family), address)
        default: nil
        }
    }
}

extension SetName {
    /// The sets that lead to the chains of user space.
    public static let entrances: Set<SetName> = Set(
        AddressFamily.allCases.flatMap { [SetName(.involved, $0), SetName(.answering, $0)] })

    /// The maps that the nat chains look into.
    public static let ofNAT: Set<SetName> = Set(
        AddressFamily.allCases.flatMap { family in
            Purpose.allCases.filter(\.isOfNAT).map { SetName($0, family) }
        })

    var isOfNAT: Bool { purpose.isOfNAT }
}

extension SetName.Purpose {
    fileprivate var isOfNAT: Bool {
        switch self {
        case .connection, .client, .service, .source: true
        default: false
        }
    }
}

extension Ruleset {
    /// The chains that depend on `Entrances.open`, as they are then; the nat chains are not among them where they need not be there.
    /// All other chains never change.
    public static func chains(open: Set<SetName>) -> [Chain] {
        func families(_ purpose: SetName.Purpose) -> [AddressFamily] {
            AddressFamily.allCases.filter { open.contains(SetName(purpose, $0)) }
        }
        return [preroutingRaw(families(.involved)), postrouting(families(.answering))]
            + (open.isDisjoint(with: SetName.ofNAT) ? [] : [preroutingNAT(open), postroutingNAT(open)])
    }

    /// Before dstnat (-100): the first chain that translates a new connection decides. Of ours the narrowest binding does.
    static func preroutingNAT(_ open: Set<SetName>) -> Chain {
        let lookUps: [(purpose: SetName.Purpose, fields: [PacketField])] = [
            (.connection, [.saddr, .sport, .daddr, .dport]), (.client, [.saddr, .daddr, .dport]),
            (.service, [.daddr, .dport]),
        ]
        return Chain(
            .preroutingNAT, hook: BaseHook(.nat, .prerouting, priority: -105),
            rules: lookUps.flatMap { purpose, fields in
                AddressFamily.allCases.filter { open.contains(SetName(purpose, $0)) }.map {
                    [.translateDestination(PacketKey($0, fields), map: SetName(purpose, $0))]
                }
            })
    }

    /// Before everybody else's source NAT (100): the first that translates a connection decides here too.
    static func postroutingNAT(_ open: Set<SetName>) -> Chain {
        Chain(
            .postroutingNAT, hook: BaseHook(.nat, .postrouting, priority: 95),
            rules: AddressFamily.allCases.filter { open.contains(SetName(.source, $0)) }.map {
                [.translateSource($0, map: SetName(.source, $0))]
            })
    }

    /// Before conntrack (-200): what is stopped here can neither find nor make an entry. A packet that user space has
    /// marked comes back to the beginning of the chain that queued it (NF_REPEAT).
    static func preroutingRaw(_ families: [AddressFamily]) -> Chain {
        Chain(
            .preroutingRaw, hook: BaseHook(.filter, .prerouting, priority: -300),
            rules: families.map {
                [.isIn(PacketKey($0, [.daddr]), set: SetName(.involved, $0)), .goTo(.involved($0))]
            })
    }

    /// After conntrack, which so sees replies as the host sends them, and before source NAT (100). An ICMP error comes from
    /// anywhere between host and gateway.
    static func postrouting(_ families: [AddressFamily]) -> Chain {
        let lookUps: [[Statement]] = families.map {
            [.isIn(PacketKey($0, [.saddr]), set: SetName(.answering, $0)), .goTo(.answering($0))]
        }
        return Chain(
            .postrouting, hook: BaseHook(.filter, .postrouting, priority: -150),
            rules: families.isEmpty ? [] : lookUps + [[.isTCP, .accept]] + families.map(errorsToPeer))
    }
}
