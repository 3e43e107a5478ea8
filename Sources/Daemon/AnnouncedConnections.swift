// SPDX-License-Identifier: GPL-3.0-or-later

package import Conntrack
package import Wire

/// A connection as conntrack finds it again.
package struct TrackedTuple: Hashable {
    package let tuple: FourTuple
    package let zone: UInt16

    package init(_ entry: ConnectionEntry) {
        tuple = entry.original
        zone = entry.zone
    }
}

/// The latest new connections that conntrack has announced, in their order.
package struct AnnouncedConnections {
    /// How many are known at most.
    package static let most = 4096

    private var latest: [TrackedTuple] = []
    /// How many had been announced before these.
    private var before: UInt64 = 0

    package init() {}

    /// How many have been announced, as far as anybody has heard of them.
    package var count: UInt64 { before + UInt64(latest.count) }

    package mutating func append(_ entry: ConnectionEntry) {
        if latest.count == Self.most {
            latest.removeFirst(Self.most / 2)
            before += UInt64(Self.most / 2)
        }
        latest.append(TrackedTuple(entry))
    }

    /// Some were missed: what has been announced since any moment up to now is not known.
    package mutating func miss() {
        before = count + 1
        latest = []
    }

    /// Those that were announced after the first `position`; nil when they are not known any more.
    package func since(_ position: UInt64) -> ArraySlice<TrackedTuple>? {
        guard position >= before else { return nil }
        return latest[Int(position - before)...]
    }
}
