// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// The rules of all flows, owned by one thread. Open addressing with linear probing; removal shifts the entries
/// behind it back, so that there are no tombstones and the table does not age. Memory is taken by `init` and `set`
/// only.
public struct FlowTable: ~Copyable {
    @usableFromInline internal var slots: [Slot]
    /// Slots minus one; the number of slots is a power of two.
    @usableFromInline internal var mask: Int
    /// The number of flows in the table.
    public private(set) var count: Int
    @usableFromInline internal let seed: UInt64
    /// How many flows are for every client: without any, a packet costs no look-up for them.
    @usableFromInline internal private(set) var anyClientCount = 0

    /// Packets from which the kernel could have learnt a reply, since it last did; full at the start, so that what a new
    /// daemon sees first is learnt.
    @usableFromInline internal var sinceReminder = 60
    /// How many packets the kernel may learn from whatever it learnt before.
    @usableFromInline internal var reminders = 0

    /// Who writes what a rule says.
    @usableFromInline internal let treatment: Treatment
    @usableFromInline internal var marks = TranslationMarks()

    /// A table that takes `capacity` flows before it grows. `seed` must not be known to those who choose addresses and
    /// ports: it keeps them from choosing flows that all fall on one slot. With treatment `mark`, each translation must have
    /// its mark before it is in a rule: what has none is dropped.
    public init(capacity: Int = 1024, seed: UInt64, treatment: Treatment = .rewrite) {
        self.treatment = treatment
        var size = 16
        while size / 2 < capacity { size *= 2 }
        slots = Array(repeating: Slot(), count: size)
        mask = size - 1
        count = 0
        self.seed = seed
    }

    /// Adds a flow or replaces its rule. Moves all entries to twice the memory when more than half the slots would be
    /// taken, so call it between batches only.
    public mutating func set(_ key: FlowKey, _ rule: FlowRule) {
        let packed = PackedKey(key)
        var index = slot(of: packed)
        if slots[index].key.isVacant {
            if (count + 1) * 2 > slots.count {
                grow()
                index = slot(of: packed)
            }
            count += 1
            if key == key.anyClient { anyClientCount += 1 }
        }
        slots[index] = Slot(key: packed, rule: rule)
    }

    /// Says by which mark, not 0, the kernel knows a translation.
    public mutating func setMark(_ mark: UInt32, of translation: Translation) {
        marks.set(translation, mark: mark, seed: seed)
    }

    /// Removes a flow. False when it was not there.
    @discardableResult
    public mutating func remove(_ key: FlowKey) -> Bool {
        var hole = slot(of: PackedKey(key))
        guard !slots[hole].key.isVacant else { return false }
        // Whatever stands behind the hole and could have stood in it moves up: the probe sequences stay unbroken.
        var next = (hole + 1) & mask
        while !slots[next].key.isVacant {
            let home = slots[next].key.hash(seed) & mask
            if (next - home) & mask >= (next - hole) & mask {
                slots[hole] = slots[next]
                hole = next
            }
            next = (next + 1) & mask
        }
        slots[hole] = Slot()
        count -= 1
        if key == key.anyClient { anyClientCount -= 1 }
        return true
    }

    /// The rule that this very key was set to; a key with any port is found only by itself.
    public func lookup(_ key: FlowKey) -> FlowRule? {
        let index = slot(of: PackedKey(key))
        return slots[index].key.isVacant ? nil : slots[index].rule
    }

    /// The rule that a packet with this key meets: its own, that of any port of the client, or that of every client.
    package func coveringRule(_ key: FlowKey) -> FlowRule? { covering(key).map { slots[$0].rule } }

    /// The slot of the rule that covers a packet with this key: its own, or else that of any port of the client, or else
    /// that of every client.
    @inlinable @inline(__always)
    internal func covering(_ key: FlowKey) -> Int? {
        let own = slot(of: PackedKey(key))
        if !slots[own].key.isVacant { return own }
        let shared = slot(of: PackedKey(key.anyPort))
        if !slots[shared].key.isVacant { return shared }
        guard anyClientCount > 0 else { return nil }
        let wide = slot(of: PackedKey(key.anyClient))
        return slots[wide].key.isVacant ? nil : wide
    }

    /// The slot that holds `key`, or the vacant one where it would go. Ends because a slot is always vacant.
    @inlinable @inline(__always)
    internal func slot(of key: PackedKey) -> Int {
        let mask = mask
        let slots = slots.span
        var index = key.hash(seed) & mask
        while slots[index].key != key, !slots[index].key.isVacant { index = (index &+ 1) & mask }
        return index
    }

    /// How many slots there are, taken or vacant: what the table costs in memory, at 64 octets each.
    public var slotCount: Int { slots.count }

    /// How many slots beyond the first a look-up of `key` reads: what it costs in time.
    public func probes(_ key: FlowKey) -> Int {
        let packed = PackedKey(key)
        return (slot(of: packed) - packed.hash(seed)) & mask
    }

    private mutating func grow() {
        let old = slots
        slots = Array(repeating: Slot(), count: old.count * 2)
        mask = slots.count - 1
        for entry in old where !entry.key.isVacant { slots[slot(of: entry.key)] = entry }
    }
}

/// A flow's entry: no references, one cache line.
@frozen
@usableFromInline
internal struct Slot {
    @usableFromInline var key: PackedKey
    @usableFromInline var rule: FlowRule

    /// A vacant slot.
    @inlinable
    init() {
        key = PackedKey()
        rule = .freeze
    }

    @inlinable
    init(key: PackedKey, rule: FlowRule) {
        self.key = key
        self.rule = rule
    }
}

/// A `FlowKey` as five numbers, so that comparing and hashing need no branches.
@frozen
@usableFromInline
internal struct PackedKey: Equatable {
    @usableFromInline var sourceHigh: UInt64
    @usableFromInline var sourceLow: UInt64
    @usableFromInline var destinationHigh: UInt64
    @usableFromInline var destinationLow: UInt64
    /// Both ports, the two families, the stage, and 1 for a slot that is taken.
    @usableFromInline var rest: UInt64

    /// The key of a vacant slot, which no flow has.
    @inlinable
    init() {
        sourceHigh = 0
        sourceLow = 0
        destinationHigh = 0
        destinationLow = 0
        rest = 0
    }

    @inlinable @inline(__always)
    init(_ key: FlowKey) {
        (sourceHigh, sourceLow) = Self.numbers(key.tuple.source.address)
        (destinationHigh, destinationLow) = Self.numbers(key.tuple.destination.address)
        let families =
            UInt64(key.tuple.source.address.family.rawValue) << 24
            | UInt64(key.tuple.destination.address.family.rawValue) << 16
        rest =
            UInt64(key.tuple.source.port) << 48 | UInt64(key.tuple.destination.port) << 32 | families
            | UInt64(key.stage.rawValue) << 8 | 1
    }

    @inlinable @inline(__always)
    static func numbers(_ address: IPAddress) -> (UInt64, UInt64) {
        switch address {
        case .v4(let address): (0, UInt64(address.rawValue))
        case .v6(let address): (address.high, address.low)
        }
    }

    @inlinable
    var isVacant: Bool { rest == 0 }

    @inlinable @inline(__always)
    static func == (left: PackedKey, right: PackedKey) -> Bool {
        (left.sourceHigh ^ right.sourceHigh) | (left.sourceLow ^ right.sourceLow)
            | (left.destinationHigh ^ right.destinationHigh) | (left.destinationLow ^ right.destinationLow)
            | (left.rest ^ right.rest) == 0
    }

    /// Folded 64 × 64 → 128-bit products over pairs of numbers, each made secret by the seed first (the construction of
    /// wyhash): without the seed, keys that fall together cannot be chosen.
    @inlinable @inline(__always)
    func hash(_ seed: UInt64) -> Int {
        var state = Self.fold(seed ^ rest, seed.byteSwapped ^ 0x9e37_79b9_7f4a_7c15)
        state = Self.fold(state ^ sourceLow, seed ^ sourceHigh ^ 0xa076_1d64_78bd_642f)
        state = Self.fold(state ^ destinationLow, seed ^ destinationHigh ^ 0xe703_7ed1_a0b4_28db)
        return Int(truncatingIfNeeded: Self.fold(state, seed ^ 0x8ebc_6af0_9c88_c6e3))
    }

    @inlinable @inline(__always)
    static func fold(_ left: UInt64, _ right: UInt64) -> UInt64 {
        let product = left.multipliedFullWidth(by: right)
        return product.high ^ product.low
    }
}
