// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Testing
import Wire

@Suite struct SessionRebasingTests {
    private static func endpoint(_ number: UInt32, _ port: UInt16) -> Endpoint {
        Endpoint(address: .v4(IPv4Address(rawValue: 0xC612_0000 | number)), port: port)
    }

    private let client = endpoint(1, 40_001)
    private let home = endpoint(2, 80)
    private let first = endpoint(3, 80)
    private let second = endpoint(4, 80)

    private func tuple(_ port: UInt16) -> FourTuple {
        FourTuple(source: Endpoint(address: client.address, port: port), destination: home)
    }

    private func standing(_ migration: UInt64) -> StandingTransit {
        StandingTransit(transit: .awaitingSYN, host: home, lifetime: 9, migration: migration)
    }

    /// On the first host, with the ends of two connections; and what a migration to the second host makes of it.
    private func sessions() -> (base: Session, decided: Session) {
        let key = SessionKey(client: client.address, clientPort: nil, home: home)
        var base = Session(key: key, id: 7, binding: Binding(host: first, datapath: .queue))
        base.transits = [tuple(1): standing(1), tuple(2): standing(1)]
        base.replies = [FourTuple(source: first, destination: client)]
        var decided = base
        decided.binding = Binding(host: second, datapath: .queue)
        decided.transits[tuple(2)] = standing(2)
        decided.transits[tuple(3)] = standing(2)
        decided.replies = []
        return (base, decided)
    }

    @Test func `nothing has happened, so the decision stands as it is`() {
        let (base, decided) = sessions()
        #expect(decided.rebased(from: base, onto: base) == decided)
    }

    @Test func `what has happened meanwhile is kept, and what was decided too`() {
        let (base, decided) = sessions()
        var now = base
        now.transits[tuple(1)] = nil
        now.transits[tuple(2)] = nil
        now.transits[tuple(4)] = standing(1)
        now.replies.insert(FourTuple(source: first, destination: Self.endpoint(1, 40_002)))
        now.yields = true
        var wanted = decided
        wanted.transits[tuple(1)] = nil
        wanted.transits[tuple(4)] = standing(1)
        wanted.yields = true
        #expect(decided.rebased(from: base, onto: now) == wanted)
    }

    @Test func `a reply that was learnt stays when the decision is not about replies`() {
        let (base, _) = sessions()
        var decided = base
        decided.transits[tuple(3)] = standing(2)
        var now = base
        now.replies.insert(FourTuple(source: first, destination: Self.endpoint(1, 40_002)))
        #expect(decided.rebased(from: base, onto: now)?.replies == now.replies)
    }

    @Test func `another host, another name or another session asks for another decision`() {
        let (base, decided) = sessions()
        var moved = base
        moved.binding = nil
        #expect(decided.rebased(from: base, onto: moved) == nil)
        #expect(decided.rebased(from: base, onto: Session(key: base.key, id: 8, binding: base.binding)) == nil)
        let other = SessionKey(client: client.address, clientPort: 5, home: home)
        #expect(decided.rebased(from: base, onto: Session(key: other, id: 7, binding: base.binding)) == nil)
    }
}
