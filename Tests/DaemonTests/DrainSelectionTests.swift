// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Daemon
import Migration
import Testing
import Wire

@Suite struct DrainSelectionTests {
    private func refusal(_ change: (inout DrainOrder) -> Void) -> String? {
        var order = DrainOrder(from: "192.0.2.1", to: [DrainHost(host: "192.0.2.2", weight: 3)])
        change(&order)
        do {
            _ = try DrainSelection(order, defaultDatapath: .kernel, checksHosts: true)
            return nil
        } catch {
            #expect(error.problem.status == 400)
            return error.problem.detail
        }
    }

    @Test func `a sensible order is taken`() {
        #expect(refusal { _ in } == nil)
        #expect(refusal { $0.to = [DrainHost(host: "home")] } == nil)
        #expect(refusal { $0.to.append(DrainHost(host: "192.0.2.3:8080")) } == nil)
        #expect(refusal { $0.service = "web" } == nil)
        #expect(refusal { ($0.from, $0.service) = (nil, "web") } == nil)
        #expect(refusal { $0.sessions = [DrainSession(client: "192.0.2.9:4000", home: "192.0.2.1:80")] } == nil)
    }

    @Test func `each nonsense is refused in one sentence`() {
        let refusals = [
            refusal { $0.from = nil }, refusal { $0.from = "nonsense" },
            refusal {
                ($0.from, $0.service) = (nil, "web")
                $0.to.append(DrainHost(host: "2001:db8::1"))
            }, refusal { $0.from = "224.0.0.1" }, refusal { $0.to = [] },
            refusal { $0.to[0].host = "2001:db8::1" }, refusal { $0.to[0].host = "192.0.2.1" },
            refusal { $0.to[0].weight = 0 }, refusal { $0.to.append($0.to[0]) },
            refusal { $0.to.append(DrainHost(host: "home")) }, refusal { $0.client = "192.0.2.0/33" },
            refusal { $0.client = "x" }, refusal { $0.atMost = 0 }, refusal { $0.order = "tallest" },
            refusal { $0.rate = 0 }, refusal { $0.rate = -1 }, refusal { $0.inFlight = 0 },
            refusal { $0.canary = 0 }, refusal { $0.canary = 1.1 }, refusal { $0.settle = -1 },
            refusal { $0.scope = "planet" }, refusal { $0.datapath = "pigeon" },
            refusal { $0.sessions = [DrainSession(client: "x", home: "192.0.2.1:80")] },
        ]
        for (index, text) in refusals.enumerated() {
            #expect(text?.hasSuffix(".") ?? false, "order \(index)")
        }
    }

    @Test func `a prefix holds the addresses that begin with its bits`() throws {
        let address = { (text: String) in try #require(IPAddress(text)) }
        let prefix = { (text: String) in try #require(AddressPrefix(text)) }
        #expect(try prefix("192.0.2.0/24").contains(address("192.0.2.255")))
        #expect(try !prefix("192.0.2.0/24").contains(address("192.0.3.0")))
        #expect(try prefix("192.0.2.128/25").contains(address("192.0.2.129")))
        #expect(try !prefix("192.0.2.128/25").contains(address("192.0.2.127")))
        #expect(try prefix("0.0.0.0/0").contains(address("198.51.100.1")))
        #expect(try prefix("192.0.2.7").contains(address("192.0.2.7")))
        #expect(try !prefix("192.0.2.7").contains(address("192.0.2.6")))
        #expect(try prefix("2001:db8:8000::/33").contains(address("2001:db8:ffff::1")))
        #expect(try !prefix("2001:db8:8000::/33").contains(address("2001:db8:7fff::1")))
        #expect(try !prefix("0.0.0.0/0").contains(address("2001:db8::1")))
        for text in ["192.0.2.0/", "/24", "192.0.2.0/24/1", "192.0.2.0/-1", "192.0.2.0/+1"] {
            #expect(AddressPrefix(text) == nil, "\(text)")
        }
    }
}

@Suite struct DrainMembersTests {
    private func key(_ port: UInt16) throws -> SessionKey {
        SessionKey(
            client: try #require(IPAddress("192.0.2.9")), clientPort: port,
            home: try #require(Endpoint("198.51.100.1:80")))
    }

    @Test func `a session keeps its place when its client comes back from other ports`() throws {
        var members = DrainMembers(try (4000...4004).map { DrainMembers.Member(key: try key($0)) })
        members.follow([try key(4001): try key(5001), try key(9999): try key(9998)])
        #expect(members[1].key == (try key(5001)))
        #expect(members.place(of: try key(5001)) == 1)
        #expect(members.place(of: try key(4001)) == nil)
        #expect(members.place(of: try key(9998)) == nil)
        // Two change ports with each other, one takes the port that another leaves.
        members.follow([
            try key(4000): try key(4004), try key(4004): try key(4000), try key(5001): try key(4002),
            try key(4002): try key(6002),
        ])
        #expect(members.all.map(\.key) == (try [4004, 4002, 6002, 4003, 4000].map { try key($0) }))
        for (place, member) in members.all.enumerated() { #expect(members.place(of: member.key) == place) }
    }
}

@Suite struct TimerQueueTests {
    @Test(arguments: 0..<20) func `timers fire in the order of their deadlines, and cancelled ones do not`(seed: Int) {
        var random = SystemRandomNumberGenerator()
        var queue = TimerQueue()
        var waiting: [UInt64: UInt64] = [:]
        let fired = Fired()
        for _ in 0..<500 {
            let deadline = UInt64.random(in: 0...100, using: &random)
            let box = Fired()
            let id = queue.add(at: deadline) { fired.ids.append(box.ids[0]) }
            box.ids = [id]
            waiting[id] = deadline
            if Bool.random(using: &random), let victim = waiting.keys.randomElement(using: &random) {
                queue.cancel(victim)
                waiting[victim] = nil
            }
        }
        #expect(queue.count == waiting.count)
        #expect(queue.deadline == waiting.values.min())
        while let body = queue.take(at: 50) { body() }
        #expect(queue.deadline ?? 51 > 50)
        while let body = queue.take(at: 100) { body() }
        let wanted = waiting.sorted { ($0.value, $0.key) < ($1.value, $1.key) }.map(\.key)
        #expect(fired.ids == wanted)
    }

    private final class Fired { var ids: [UInt64] = [] }
}

@Suite struct SessionTableTests {
    private func key(_ port: UInt16?, home: String = "198.51.100.1:80") throws -> SessionKey {
        SessionKey(
            client: try #require(IPAddress("192.0.2.9")), clientPort: port, home: try #require(Endpoint(home)))
    }

    @Test func `sessions are found by client, connection and transit, and only while they are there`() throws {
        var table = SessionTable()
        let (one, two, all) = (try key(4000), try key(4001), try key(nil, home: "198.51.100.7:80"))
        for key in [one, two, all] { table[key] = Session(key: key) }
        #expect(Set(table.sessions(of: one.client).map(\.key)) == [one, two, all])
        #expect(Set(table.sessions(around: one).map(\.key)) == [all])
        #expect(Set(table.sessions(around: all).map(\.key)) == [one, two])
        let tuple = one.original
        table[one]?.transits[tuple] = StandingTransit(transit: .frozen, host: one.home, lifetime: 1, migration: 1)
        #expect(table.session(holding: tuple)?.key == one)
        table[one]?.transits[tuple] = nil
        #expect(table.session(holding: tuple) == nil)
        table[two]?.replies.insert(tuple)
        #expect(table.session(answeredBy: tuple)?.key == two)
        table[two] = nil
        #expect(table.session(answeredBy: tuple) == nil)
        table[all] = nil
        #expect(table.sessions(of: one.client).map(\.key) == [one])
        table[one] = nil
        #expect(table.sessions(of: one.client).isEmpty)
        #expect(table.count == 0)
    }

    @Test func `a migration that waits is found by its client's endpoint or address`() throws {
        var waiting = AwaitedReconnects()
        let client = try key(4000).clientEndpoint
        waiting.insert(1, try key(4000))
        waiting.insert(2, try key(nil))
        waiting.insert(3, try key(4001))
        #expect(waiting.ids(of: client) == [1, 2])
        waiting.follow(1, try key(4007))
        waiting.follow(9, try key(4007))
        #expect(waiting.ids(of: client) == [2])
        #expect(waiting.ids(of: try key(4007).clientEndpoint) == [1, 2])
        waiting.remove(1)
        waiting.remove(2)
        #expect(waiting.ids(of: client).isEmpty)
        waiting.remove(3)
        #expect(waiting.isEmpty)
    }
}
