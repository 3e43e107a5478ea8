// SPDX-License-Identifier: GPL-3.0-or-later

package import Ruleset

/// What the table is to hold, held against what it holds: one look-up for each element that is read.
package struct TableReckoning {
    private struct Entry {
        let lifetime: UInt32?
        var isPresent: Bool
    }

    private var wanted: [TableElement: Entry] = [:]
    /// What the table holds and nobody wants.
    package private(set) var surplus: Set<TableElement> = []

    package init() {}

    package mutating func reserve(_ count: Int) { wanted.reserveCapacity(count) }

    /// The table is to hold an element. Of two lifetimes the first counts.
    package mutating func want(_ element: TableElement, lifetime: UInt32?) {
        if wanted[element] != nil { return }
        wanted[element] = Entry(lifetime: lifetime, isPresent: surplus.remove(element) != nil)
    }

    /// The table is not to hold it.
    package mutating func refuse(_ element: TableElement) {
        if wanted.removeValue(forKey: element)?.isPresent ?? false { surplus.insert(element) }
    }

    /// The table holds an element. Whether that was wanted.
    @discardableResult
    package mutating func find(_ element: TableElement) -> Bool {
        guard let place = wanted.index(forKey: element) else {
            surplus.insert(element)
            return false
        }
        wanted.values[place].isPresent = true
        return true
    }

    package func isPresent(_ element: TableElement) -> Bool {
        wanted[element]?.isPresent ?? surplus.contains(element)
    }

    /// What the table holds, of that which a condition holds for.
    package func present(where condition: (TableElement) -> Bool) -> Set<TableElement> {
        var present = surplus.filter(condition)
        for (element, entry) in wanted where entry.isPresent && condition(element) { present.insert(element) }
        return present
    }

    /// What the table lacks.
    package var missing: [TableChange.Addition] {
        wanted.filter { !$0.value.isPresent }.map { .init(element: $0.key, lifetime: $0.value.lifetime) }
    }
}
