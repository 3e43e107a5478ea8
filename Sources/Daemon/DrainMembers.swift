// SPDX-License-Identifier: GPL-3.0-or-later

package import Migration

/// The sessions of a drain, in the order of their turns. One whose client comes back from another port keeps its place.
package struct DrainMembers: Sendable {
    /// A session that a drain moves.
    package struct Member: Sendable {
        /// What it is called now.
        package fileprivate(set) var key: SessionKey
        /// Its number; 0 before there was one.
        let session: UInt64
        /// What bound it before; nil when home served it.
        let before: Binding?

        package init(key: SessionKey, session: UInt64 = 0, before: Binding? = nil) {
            self.key = key
            self.session = session
            self.before = before
        }
    }

    private var members: [Member]
    private var places: [SessionKey: Int] = [:]

    package init(_ members: [Member]) {
        self.members = members
        for (place, member) in members.enumerated() { places[member.key] = place }
    }

    package var count: Int { members.count }
    package var all: [Member] { members }
    package subscript(place: Int) -> Member { members[place] }

    /// The place of the session that has this key now.
    package func place(of key: SessionKey) -> Int? { places[key] }

    /// Sessions have other keys now: the old ones, each with the new one.
    package mutating func follow(_ moved: [SessionKey: SessionKey]) {
        let moves = moved.compactMap { old, new in places[old].map { ($0, new) } }
        // One may take the port that another has left.
        for (place, _) in moves { places[members[place].key] = nil }
        for (place, key) in moves {
            members[place].key = key
            places[key] = place
        }
    }
}
