// SPDX-License-Identifier: GPL-3.0-or-later

/// What is to be done at which time: a binary heap that knows where each of its entries is, so that adding, taking the
/// first and cancelling any cost a logarithm of their number. Of equal deadlines the older comes first.
package struct TimerQueue {
    private final class Entry {
        let id: UInt64
        let deadline: UInt64
        let body: () -> Void
        /// Its index in the heap.
        var place: Int

        init(id: UInt64, deadline: UInt64, place: Int, _ body: @escaping () -> Void) {
            self.id = id
            self.deadline = deadline
            self.place = place
            self.body = body
        }

        func precedes(_ other: Entry) -> Bool { (deadline, id) < (other.deadline, other.id) }
    }

    private var entries: [Entry] = []
    private var known: [UInt64: Entry] = [:]
    private var lastID: UInt64 = 0

    package init() {}

    package var count: Int { entries.count }

    /// The earliest deadline; nil when nothing is to be done.
    package var deadline: UInt64? { entries.first?.deadline }

    /// Returns a number for `cancel`.
    package mutating func add(at deadline: UInt64, _ body: @escaping () -> Void) -> UInt64 {
        lastID += 1
        let entry = Entry(id: lastID, deadline: deadline, place: entries.count, body)
        entries.append(entry)
        known[lastID] = entry
        rise(from: entries.count - 1)
        return lastID
    }

    package mutating func cancel(_ id: UInt64) {
        guard let entry = known[id] else { return }
        remove(at: entry.place)
    }

    /// Takes the first entry out when its deadline has come.
    package mutating func take(at now: UInt64) -> (() -> Void)? {
        guard let first = entries.first, first.deadline <= now else { return nil }
        remove(at: 0)
        return first.body
    }

    private mutating func remove(at place: Int) {
        swap(place, entries.count - 1)
        known[entries.removeLast().id] = nil
        guard place < entries.count else { return }
        rise(from: place)
        sink(from: place)
    }

    private mutating func rise(from start: Int) {
        var place = start
        while place > 0 {
            let parent = (place - 1) / 2
            guard entries[place].precedes(entries[parent]) else { return }
            swap(place, parent)
            place = parent
        }
    }

    private mutating func sink(from start: Int) {
        var place = start
        while true {
            var least = place
            for child in [2 * place + 1, 2 * place + 2]
            where child < entries.count && entries[child].precedes(entries[least]) { least = child }
            if least == place { return }
            swap(place, least)
            place = least
        }
    }

    private mutating func swap(_ one: Int, _ other: Int) {
        guard one != other else { return }
        entries.swapAt(one, other)
        entries[one].place = one
        entries[other].place = other
    }
}
