// SPDX-License-Identifier: GPL-3.0-or-later

internal import Migration
internal import Wire

/// What records are found by.
protocol RecordName {
    associatedtype Name: Hashable

    /// What the session of this record is called here; nil when it is in no such index.
    static func name(of place: Int, in records: SessionRecords) -> Name?
}

/// Finds places in `SessionRecords` by a name that each has there: four octets a slot, since the names are those of the
/// records. Open addressing with linear probing; removal shifts the entries behind it back. The names of records that are
/// in the index must not change.
struct RecordIndex<Naming: RecordName>: Sendable {
    private static var vacant: UInt32 { .max }

    private var slots: [UInt32] = []
    private(set) var count = 0

    var isEmpty: Bool { count == 0 }

    /// Makes room for so many names, at once.
    mutating func reserve(_ names: Int, in records: SessionRecords) {
        let wanted = names + names / 2 + 4
        if wanted > slots.count { resize(to: wanted, in: records) }
    }

    func place(of name: Naming.Name, in records: SessionRecords) -> Int? {
        if count == 0 { return nil }
        let place = slots[slot(of: name, in: records)]
        return place == Self.vacant ? nil : Int(place)
    }

    /// Whatever was called `name` before, the record at `place` is.
    mutating func set(_ place: Int, _ name: Naming.Name, in records: SessionRecords) {
        // Two slots of three at most, and half as many again when that is not enough.
        if (count + 1) * 3 > slots.count * 2 { resize(to: slots.count + slots.count / 2 + 8, in: records) }
        let slot = slot(of: name, in: records)
        if slots[slot] == Self.vacant { count += 1 }
        slots[slot] = UInt32(place)
    }

    /// Forgets a name, if it is that of this record.
    mutating func remove(_ place: Int, _ name: Naming.Name, in records: SessionRecords) {
        if count == 0 { return }
        var hole = slot(of: name, in: records)
        guard slots[hole] == UInt32(place) else { return }
        var next = following(hole)
        while slots[next] != Self.vacant {
            let first = Naming.name(of: Int(slots[next]), in: records).map { start(of: $0) } ?? next
            // Whatever stands behind the hole and could have stood in it moves up.
            if distance(from: first, to: next) >= distance(from: hole, to: next) {
                slots[hole] = slots[next]
                hole = next
            }
            next = following(next)
        }
        slots[hole] = Self.vacant
        count -= 1
    }

    /// The slot that has this name, or the vacant one where it would go.
    private func slot(of name: Naming.Name, in records: SessionRecords) -> Int {
        var slot = start(of: name)
        while slots[slot] != Self.vacant, Naming.name(of: Int(slots[slot]), in: records) != name {
            slot = following(slot)
        }
        return slot
    }

    private func start(of name: Naming.Name) -> Int {
        Int(UInt(bitPattern: name.hashValue).multipliedFullWidth(by: UInt(slots.count)).high)
    }

    private func following(_ slot: Int) -> Int { slot + 1 == slots.count ? 0 : slot + 1 }

    private func distance(from start: Int, to slot: Int) -> Int {
        slot >= start ? slot - start : slot - start + slots.count
    }

    private mutating func resize(to size: Int, in records: SessionRecords) {
        let old = slots
        slots = Array(repeating: Self.vacant, count: size)
        for place in old where place != Self.vacant {
            guard let name = Naming.name(of: Int(place), in: records) else { continue }
            var slot = start(of: name)
            while slots[slot] != Self.vacant { slot = following(slot) }
            slots[slot] = place
        }
    }
}

/// By key.
enum KeyName: RecordName {
    static func name(of place: Int, in records: SessionRecords) -> SessionKey? { records.key(place) }
}

/// By number.
enum NumberName: RecordName {
    static func name(of place: Int, in records: SessionRecords) -> UInt64? { records.number(place) }
}

/// By the client's address, the first of its list; nil for every client.
enum ClientName: RecordName {
    static func name(of place: Int, in records: SessionRecords) -> IPAddress?? { .some(records.key(place).client) }
}

/// By the client's endpoint, the first of its list.
enum EndpointName: RecordName {
    static func name(of place: Int, in records: SessionRecords) -> Endpoint? { records.key(place).clientEndpoint }
}

/// By the four-tuple that the host has: `Session.hostSide`.
enum HostSideName: RecordName {
    static func name(of place: Int, in records: SessionRecords) -> FourTuple? { records.hostSide(place) }
}
