// SPDX-License-Identifier: GPL-3.0-or-later

/// A flow's entry in a table: no references.
@usableFromInline
internal protocol FlowSlot {
    associatedtype Key: SlotKey

    /// A vacant slot.
    init()
    var key: Key { get }
}

/// What a slot is found by.
@usableFromInline
internal protocol SlotKey: Equatable {
    var isVacant: Bool { get }
    /// All 64 bits count. `seed` is secret: without it, keys that fall together cannot be chosen.
    func hash(_ seed: UInt64) -> UInt64
}

extension SlotKey {
    /// A 64 × 64 → 128-bit product, folded: with both factors made secret by the seed, the construction of wyhash.
    @inlinable @inline(__always)
    static func fold(_ left: UInt64, _ right: UInt64) -> UInt64 {
        let product = left.multipliedFullWidth(by: right)
        return product.high ^ product.low
    }

    /// The same over three numbers: of `rest`, which may have to be looked up first, but one product depends.
    @inlinable @inline(__always)
    static func hash(_ high: UInt64, _ low: UInt64, _ rest: UInt64, _ seed: UInt64) -> UInt64 {
        let address = fold(seed ^ low, seed.byteSwapped ^ high ^ 0x9e37_79b9_7f4a_7c15)
        return fold(address ^ 0xe703_7ed1_a0b4_28db, seed ^ rest ^ 0xa076_1d64_78bd_642f)
    }
}

/// Open addressing with linear probing in any number of slots, of which five in eight are taken at most. Removal shifts the
/// entries behind it back, so that there are no tombstones and the table does not age.
@frozen
@usableFromInline
internal struct FlowSlots<Slot: FlowSlot>: ~Copyable {
    @usableFromInline internal var slots: [Slot]
    private var taken = 0

    /// Room for `capacity` entries, and a few.
    init(capacity: Int) { slots = Array(repeating: Slot(), count: Self.size(for: capacity)) }

    private static func size(for capacity: Int) -> Int { capacity + capacity * 3 / 5 + 4 }

    @inlinable
    var count: Int { slots.count }

    @inlinable
    subscript(slot: Int) -> Slot {
        @inline(__always) get { slots[slot] }
        @inline(__always) _modify { yield &slots[slot] }
    }

    /// The slot that holds `key`.
    @inlinable @inline(__always)
    func find(_ key: Slot.Key, _ seed: UInt64) -> Int? {
        let slot = slot(of: key, seed)
        return slots[slot].key.isVacant ? nil : slot
    }

    /// The slot that holds `key`, or the vacant one where it would go. Ends because a slot is always vacant.
    @inlinable @inline(__always)
    func slot(of key: Slot.Key, _ seed: UInt64) -> Int {
        let slots = slots.span
        var index = first(key, seed)
        while !slots[index].key.isVacant, slots[index].key != key {
            index &+= 1
            if index == slots.count { index = 0 }
        }
        return index
    }

    /// Where a look-up begins.
    @inlinable @inline(__always)
    func first(_ key: Slot.Key, _ seed: UInt64) -> Int {
        Int(truncatingIfNeeded: key.hash(seed).multipliedFullWidth(by: UInt64(truncatingIfNeeded: slots.count)).high)
    }

    /// Whether the entry's key is new here.
    mutating func set(_ entry: Slot, _ seed: UInt64) -> Bool {
        var index = slot(of: entry.key, seed)
        let isNew = slots[index].key.isVacant
        if isNew {
            if (taken + 1) * 8 > slots.count * 5 {
                grow(seed)
                index = slot(of: entry.key, seed)
            }
            taken += 1
        }
        slots[index] = entry
        return isNew
    }

    /// False when there is no such entry.
    mutating func remove(_ key: Slot.Key, _ seed: UInt64) -> Bool {
        guard taken > 0, var hole = find(key, seed) else { return false }
        // Whatever stands behind the hole and could have stood in it moves up: the probe sequences stay unbroken.
        var next = following(hole)
        while !slots[next].key.isVacant {
            let first = first(slots[next].key, seed)
            if distance(from: first, to: next) >= distance(from: hole, to: next) {
                slots[hole] = slots[next]
                hole = next
            }
            next = following(next)
        }
        slots[hole] = Slot()
        taken -= 1
        return true
    }

    func probes(_ key: Slot.Key, _ seed: UInt64) -> Int { distance(from: first(key, seed), to: slot(of: key, seed)) }

    private func following(_ slot: Int) -> Int { slot + 1 == slots.count ? 0 : slot + 1 }

    private func distance(from start: Int, to slot: Int) -> Int { slot - start + (slot < start ? slots.count : 0) }

    private mutating func grow(_ seed: UInt64) {
        let old = slots
        slots = Array(repeating: Slot(), count: Self.size(for: taken + taken / 2 + 8))
        for entry in old where !entry.key.isVacant { slots[slot(of: entry.key, seed)] = entry }
    }
}
