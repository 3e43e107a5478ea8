// SPDX-License-Identifier: GPL-3.0-or-later

import Daemon
import Ruleset
import Testing
import Wire

@Suite struct ReplySweepTests {
    private let settled = ReplyLook.settlingTime

    private func reply(_ port: Int, client: String = "192.0.2.1") throws -> FourTuple {
        let host = try #require(Endpoint("198.51.100.2:80"))
        return FourTuple(source: host, destination: try #require(Endpoint("\(client):\(port)")))
    }

    /// All that a sweep of these findings does.
    private func everything(_ findings: ReplyFindings) -> (elements: Set<TableElement>, unheld: Set<FourTuple>) {
        var sweep = ReplySweep()
        sweep.take(findings)
        let all = sweep.next(1000)
        return (Set(all.elements), Set(all.unheld))
    }

    @Test func `what no connection needs is found, and nothing else`() throws {
        let replies = try (1...5).map { try reply($0) }
        var look = ReplyLook(known: [replies[0], replies[1], replies[4]])
        for each in replies.prefix(4) { look.add(.reply(each), age: settled) }
        look.add(connection: replies[1].reversed)
        // Conntrack has forgotten this one and met the host's segment first.
        look.add(connection: replies[2])
        // A direct connection of somebody else.
        look.add(connection: try reply(9).reversed)
        let findings = look.result()
        let ended = everything(findings)
        #expect(ended.elements == [.reply(replies[0]), .reply(replies[3])])
        #expect(ended.unheld == [replies[4]])
        // Only of these the sessions know.
        #expect(findings.standing == 1)
        #expect(findings.held == [.ipv4: 4] && findings.left == [.ipv4: 2])
    }

    @Test func `what a packet has just renewed stays without a connection`() throws {
        let (young, old) = try (reply(1), reply(2))
        var look = ReplyLook(known: [young, old])
        look.add(.reply(young), age: settled - 1)
        look.add(.reply(old), age: settled)
        let ended = everything(look.result())
        #expect(ended.elements == [.reply(old)] && ended.unheld == [])
    }

    @Test func `a client has its element as long as a reply stands`() throws {
        let clients = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]
        let addresses = try clients.map { try #require(IPAddress($0)) }
        var look = ReplyLook()
        for address in addresses.dropLast() { look.add(.icmpPeer(address), age: settled) }
        look.add(.icmpPeer(addresses[3]), age: settled - 1)
        // The first has a connection, the second a young reply, the others nothing that stands.
        let replies = try clients.map { try reply(7, client: $0) }
        look.add(.reply(replies[0]), age: settled)
        look.add(.reply(replies[1]), age: 0)
        look.add(.reply(replies[2]), age: settled)
        look.add(connection: replies[0].reversed)
        #expect(everything(look.result()).elements == [.reply(replies[2]), .icmpPeer(addresses[2])])
    }

    @Test func `a connection that begins keeps its reply, or gets it back`() throws {
        let replies = try (1...6).map { try reply($0) }
        var look = ReplyLook()
        for each in replies { look.add(.reply(each), age: settled) }
        look.add(.icmpPeer(replies[0].destination.address), age: settled)
        var sweep = ReplySweep()
        // While the look goes on.
        #expect(sweep.renew(replies[0]) == [])
        sweep.take(look.result())
        var gone: [TableElement] = []
        while gone.count < 2 { gone += sweep.next(1).elements }
        let late = try #require(replies.first { gone[1] == .reply($0) })
        #expect(sweep.renew(late) == [.reply(late)])
        let early = try #require(replies.first { !gone.contains(.reply($0)) && $0 != replies[0] })
        #expect(sweep.renew(early) == [])
        while !sweep.isDone { gone += sweep.next(1).elements }
        #expect(Set(gone) == Set(replies.filter { $0 != replies[0] && $0 != early }.map { .reply($0) }))
        // The client's own element, which all six share, was not touched.
        #expect(sweep.renew(replies[0]) == [])
    }

    @Test func `what was let go long ago needs nobody's help`() throws {
        var sweep = ReplySweep()
        var look = ReplyLook()
        let replies = try (1...ReplySweep.latest + 300).map { try reply($0) }
        for each in replies { look.add(.reply(each), age: settled) }
        sweep.take(look.result())
        var gone: [TableElement] = []
        while !sweep.isDone { gone += sweep.next(256).elements }
        #expect(gone.count == replies.count)
        let (first, last) = (gone[0], gone[gone.count - 1])
        #expect(replies.filter { .reply($0) == first }.flatMap { sweep.renew($0) } == [])
        #expect(replies.filter { .reply($0) == last }.flatMap { sweep.renew($0) } == [last])
    }

    @Test func `a sweep is due when enough has been learnt and enough time has passed`() {
        let second: UInt64 = 1_000_000_000
        let start: UInt64 = 1000 * second
        var schedule = SweepSchedule(at: start)
        func due(_ known: Int, after seconds: UInt64 = 0) -> UInt64? {
            schedule.due(known: known, size: 10_000, at: start + seconds * second).map { ($0 - start) / second }
        }
        #expect(due(0, after: 100_000) == nil)
        #expect(due(SweepSchedule.few - 1) == nil)
        #expect(due(SweepSchedule.few) == 30)
        #expect(due(5001) == 5)
        // Some that nobody has heard of may be there in any case.
        #expect(due(1, after: 3599) == nil)
        #expect(due(1, after: 3600) == 3600)

        // A look that takes two seconds is made no more often than once in a hundred; under pressure, twenty.
        var findings = ReplyFindings()
        findings.standing = 4000
        schedule.end(findings, looked: 2 * second, at: start)
        #expect(due(4000 + SweepSchedule.few - 1) == nil)
        #expect(due(4000 + SweepSchedule.few) == 100)
        #expect(due(6000) == 20)
        // Those of a session that goes on go with it: what is learnt afterwards counts anew.
        #expect(due(100) == nil)
        #expect(due(100 + SweepSchedule.few) == 100)
    }
}
