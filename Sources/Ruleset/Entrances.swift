// SPDX-License-Identifier: GPL-3.0-or-later

internal import Wire

/// The addresses in the sets `involved` and `answering`. Every packet of the gateway meets our base chains, and only through
/// these sets it comes to any other rule. So the rule that looks into one of them stands only while the set has an element:
/// where nothing is in user space's care, a packet meets two empty chains.
///
/// A base chain itself always stands. Unregistering its hook would drop the packets that wait in every queue of the network
/// namespace (nf_unregister_net_hook → nf_queue_nf_hook_drop); a rule can come and go.
public struct Entrances: Hashable, Sendable {
    private var addresses: [SetName: Set<IPAddress>] = [:]

    /// With the addresses of those of these elements that are in one of the two sets.
    public init(_ elements: some Sequence<TableElement>) {
        for element in elements { insert(element) }
    }

    /// The sets that have an element.
    public var open: Set<SetName> { Set(addresses.keys) }

    /// Follows a change of the table: removals, then additions.
    public mutating func apply(_ change: TableChange) {
        for element in change.remove { remove(element) }
        for addition in change.add { insert(addition.element) }
    }

    /// Whether a change has to do with these sets at all.
    public static func concern(_ change: TableChange) -> Bool {
        change.remove.contains { place(of: $0) != nil } || change.add.contains { place(of: $0.element) != nil }
    }

    private mutating func insert(_ element: TableElement) {
        guard let (set, address) = Self.place(of: element) else { return }
        addresses[set, default: []].insert(address)
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
    /// The sets of `Entrances`.
    public static let entrances: Set<SetName> = Set(
        AddressFamily.allCases.flatMap { [SetName(.involved, $0), SetName(.answering, $0)] })
}

extension Ruleset {
    /// The chains whose rules depend on which entrances are open, as they are then. All other chains never change.
    public static func chains(open: Set<SetName>) -> [Chain] {
        func families(_ purpose: SetName.Purpose) -> [AddressFamily] {
            AddressFamily.allCases.filter { open.contains(SetName(purpose, $0)) }
        }
        return [preroutingRaw(families(.involved)), postrouting(families(.answering))]
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
