// SPDX-License-Identifier: GPL-3.0-or-later

package import Migration
package import Ruleset

/// Elements that several sessions want, with the number of sessions that want them. Sessions that follow each other mostly
/// share the same ones, in the same order: those are compared with the session's before, and not looked up.
package struct SharedElements {
    private var counts: [TableElement: Int] = [:]
    /// Those of the latest session in their order, and how many sessions in a row have had them there.
    private var latest: [(element: TableElement, count: Int)] = []

    package init() {}

    /// Counts what a session shares, and calls `body` with its elements: with one that is shared, only the first time.
    package mutating func forEachElement(of session: Session, _ body: (TableElement, _ lifetime: UInt32?) -> Void) {
        if session.key.scope == .service {
            // Of a client with several connections it has an element several times, and counts once for it.
            for (element, lifetime) in session.elements() {
                if !element.isShared || add(element, count: 1) { body(element, lifetime) }
            }
            return
        }
        var place = 0
        session.forEachElement { element, lifetime in
            guard element.isShared else { return body(element, lifetime) }
            if note(element, at: place) { body(element, lifetime) }
            place += 1
        }
    }

    /// The counts, of all elements that any session wants.
    package consuming func result() -> [TableElement: Int] {
        for each in latest { add(each.element, count: each.count) }
        return counts
    }

    /// Counts an element of a session, the one at this place of those that it shares. Whether it is new.
    private mutating func note(_ element: TableElement, at place: Int) -> Bool {
        guard place < latest.count else {
            latest.append((element, 0))
            return add(element, count: 1)
        }
        if latest[place].element == element {
            latest[place].count += 1
            return false
        }
        add(latest[place].element, count: latest[place].count)
        latest[place] = (element, 0)
        return add(element, count: 1)
    }

    /// Whether the element is new.
    @discardableResult
    private mutating func add(_ element: TableElement, count: Int) -> Bool {
        let before = counts[element]
        counts[element] = (before ?? 0) + count
        return before == nil
    }
}
