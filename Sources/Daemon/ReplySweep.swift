// SPDX-License-Identifier: GPL-3.0-or-later

package import Ruleset
package import Wire

// What the kernel has learnt from a connection's packets stands for days, since an idle connection needs it, and nothing tells
// the kernel that a connection has ended. So from time to time a sweep takes away what no connection needs: a look finds it, on
// a thread of its own, since it lists all of conntrack's connections; the event loop then removes it, some at a time.

/// One look at what packets have filled the table with. First it is shown every element, and every reply that sessions know
/// of; then every connection of conntrack; then it says what stands for none.
package struct ReplyLook: Sendable {
    /// What a packet has renewed less than so many milliseconds ago stays, whatever conntrack says: a SYN is learnt before conntrack
    /// has its connection, and the last segments of one that is over (a FIN that is repeated) still need their reply.
    package static let settlingTime: UInt64 = 10_000

    /// What is known of a reply.
    private struct Place: OptionSet {
        var rawValue: UInt8

        /// The table has it, and has had it for long enough.
        static let isSettled = Place(rawValue: 1 << 0)
        /// Too young to be taken away.
        static let isYoung = Place(rawValue: 1 << 1)
        /// A session knows of it.
        static let isKnown = Place(rawValue: 1 << 2)
    }

    /// Replies without a connection, up to now.
    private var others: [FourTuple: Place] = [:]
    private var peers: Set<IPAddress> = []
    private var answeredPeers: Set<IPAddress> = []
    private var findings = ReplyFindings()

    /// `known`: replies that sessions of many connections know of. They may be more than the table has, if that had no room.
    package init(known: [FourTuple] = []) {
        others.reserveCapacity(known.count)
        for reply in known { others[reply] = .isKnown }
    }

    /// An element of the table, and the milliseconds since it was last renewed. Others than learnt ones are passed over.
    package mutating func add(_ element: TableElement, age: UInt64) {
        let isSettled = age >= Self.settlingTime
        switch element {
        case .reply(let reply):
            others[reply, default: []].insert(isSettled ? .isSettled : .isYoung)
            findings.held[reply.source.address.family, default: 0] += 1
        case .icmpPeer(let client) where isSettled: peers.insert(client)
        default: break
        }
    }

    /// A connection that is not over, as its initiator sends. Conntrack that has forgotten one takes it up with the next packet,
    /// and who sends that is its initiator.
    package mutating func add(connection original: FourTuple) {
        for reply in [original.reversed, original] {
            guard let place = others.removeValue(forKey: reply) else { continue }
            if place.contains(.isKnown) { findings.standing += 1 }
            answeredPeers.insert(reply.destination.address)
        }
    }

    /// What is left, when all connections have been shown.
    package func result() -> ReplyFindings {
        var findings = findings
        var answeredPeers = answeredPeers
        var (ended, unheld): ([FourTuple], [FourTuple]) = ([], [])
        for (reply, place) in others {
            if place.contains(.isYoung) {
                answeredPeers.insert(reply.destination.address)
            } else if place.contains(.isSettled) {
                ended.append(reply)
                findings.left[reply.source.address.family, default: 0] -= 1
            } else {
                unheld.append(reply)
            }
        }
        for (family, held) in findings.held { findings.left[family, default: 0] += held }
        findings.replies = TakingList(ended)
        findings.unheld = TakingList(unheld)
        findings.peers = TakingList(Array(peers.subtracting(answeredPeers)))
        return findings
    }
}

/// What a look has found.
package struct ReplyFindings: Sendable {
    /// Replies in the table that no connection needs.
    package var replies = TakingList<FourTuple>()
    /// The same of which only sessions know.
    package var unheld = TakingList<FourTuple>()
    /// Clients without a reply that stands.
    package var peers = TakingList<IPAddress>()
    /// Replies that sessions of many connections know of and whose connections are there.
    package var standing = 0
    /// How many replies of each family the kernel held, and how many it will hold.
    package var held: [AddressFamily: Int] = [:]
    package var left: [AddressFamily: Int] = [:]

    package init() {}
}

/// What has its turn in its order, and where in it each stands. Made where it holds nobody up: it may be long.
package struct TakingList<Name: Hashable & Sendable>: Sendable {
    private let names: [Name]
    private let places: [Name: Int32]
    private var taken = 0

    package init(_ names: [Name] = []) {
        self.names = names
        var places: [Name: Int32] = [:]
        places.reserveCapacity(names.count)
        for (place, name) in names.enumerated() { places[name] = Int32(place) }
        self.places = places
    }

    package var count: Int { names.count }
    package var isEmpty: Bool { taken == names.count }

    /// Whether this is one of the latest, so many, that have had their turn.
    package func hasTaken(_ name: Name, amongLatest count: Int) -> Bool {
        places[name].map { (taken - count..<taken).contains(Int($0)) } ?? false
    }

    /// The next ones, `count` at most.
    package mutating func next(_ count: Int) -> ArraySlice<Name> {
        let part = names[taken...].prefix(count)
        taken += part.count
        return part
    }
}

/// What has still its turn in a sweep, and what must not have it, because a connection has begun since the look.
package struct ReplySweep: Sendable {
    /// Seconds in which the kernel lets go what has its turn. It is learnt anew from any packet until then, and a SYN that is learnt
    /// in the very moment of the change is heard of by then.
    package static let patience: UInt32 = 5
    /// A connection is heard of within a twentieth of a second: until then so many, at most, have their turn.
    package static let latest = 4096

    private var findings = ReplyFindings()
    private var renewed: Set<FourTuple> = []
    private var renewedPeers: Set<IPAddress> = []

    package init() {}

    package var isDone: Bool { findings.replies.isEmpty && findings.peers.isEmpty && findings.unheld.isEmpty }

    /// The look is over.
    package mutating func take(_ findings: ReplyFindings) { self.findings = findings }

    /// A connection begins that is answered with `reply`. Returns what has just had its turn and is needed again: the SYN may have
    /// passed, and been learnt, a moment before.
    package mutating func renew(_ reply: FourTuple) -> [TableElement] {
        let client = reply.destination.address
        var again: [TableElement] = []
        if renewed.insert(reply).inserted, findings.replies.hasTaken(reply, amongLatest: Self.latest) {
            again.append(.reply(reply))
        }
        if renewedPeers.insert(client).inserted, findings.peers.hasTaken(client, amongLatest: Self.latest) {
            again.append(.icmpPeer(client))
        }
        return again
    }

    /// What has its turn next, `count` names at most: all replies, then their clients, then what the table does not have.
    package mutating func next(_ count: Int) -> (elements: [TableElement], unheld: [FourTuple]) {
        let replies = findings.replies.next(count)
        let peers = findings.peers.next(count - replies.count)
        let unheld = findings.unheld.next(count - replies.count - peers.count)
        let elements: [TableElement] =
            replies.filter { !renewed.contains($0) }.map { .reply($0) }
            + peers.filter { !renewedPeers.contains($0) }.map { .icmpPeer($0) }
        return (elements, unheld.filter { !renewed.contains($0) })
    }
}

/// When a sweep is due. Times are nanoseconds.
package struct SweepSchedule: Sendable {
    /// Fewer replies than so many are not worth a look at all connections.
    package static let few = 256
    /// Between the end of one sweep and the next; when the table may soon have no room.
    package static let pause: UInt64 = 30_000_000_000
    package static let shortPause: UInt64 = 5_000_000_000
    /// A look takes no more than one part in so many of a processor's time; one in ten when room is short.
    package static let thrift: UInt64 = 50
    /// After so long any reply is worth a look: of some that the kernel has learnt nobody has heard.
    package static let longest: UInt64 = 3_600_000_000_000

    /// Replies whose connections were there at the last look.
    private var standing = 0
    private var ended: UInt64
    private var took: UInt64 = 0

    /// `now`: when the daemon began.
    package init(at now: UInt64) { ended = now }

    package mutating func end(_ findings: ReplyFindings, looked: UInt64, at now: UInt64) {
        standing = findings.standing
        took = looked
        ended = now
    }

    /// A sweep could not be made, which took so long.
    package mutating func fail(looked: UInt64, at now: UInt64) {
        took = looked
        ended = now
    }

    /// When the next sweep is due, not before `now` if only time calls for it; `known` replies are known to have been learnt, and
    /// each family has room for `size`. nil when none is called for.
    package mutating func due(known: Int, size: Int, at now: UInt64) -> UInt64? {
        // Sessions that go on take their replies with them.
        standing = min(standing, known)
        guard known - standing >= Self.few else {
            return known > 0 && now >= ended + max(Self.longest, took * Self.thrift) ? now : nil
        }
        let isPressing = known > size / 2
        return ended + max(isPressing ? Self.shortPause : Self.pause, took * (isPressing ? 10 : Self.thrift))
    }
}
