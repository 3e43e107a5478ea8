// SPDX-License-Identifier: GPL-3.0-or-later

import Daemon
import Migration
import Ruleset
import Testing
import Wire

@Suite struct LearntRepliesTests {
    private func endpoint(_ text: String) throws -> Endpoint { try #require(Endpoint(text)) }

    @Test func `what the kernel has learnt is told to the session that serves the client`() throws {
        let (home, host) = try (endpoint("198.51.100.1:80"), endpoint("198.51.100.2:80"))
        let clients = try ["192.0.2.1:1001", "192.0.2.1:1002", "192.0.2.2:1001"].map { try endpoint($0) }
        func session(_ client: Endpoint?, port: UInt16? = nil, _ datapath: Datapath) -> Session {
            let key = SessionKey(client: client?.address, clientPort: port, home: home)
            return Session(key: key, id: 1, binding: Binding(host: host, datapath: datapath))
        }
        let service = session(nil, .queue)
        let (own, other) = (session(clients[0], .queue), session(clients[2], .kernel))
        var table = SessionTable([service, own, other])
        let replies = clients.map { FourTuple(source: host, destination: $0) }
        table.learn(from: replies.map { .reply($0) } + [.icmpPeer(clients[0].address), .divertService(home: home)])
        #expect(table[service.key]?.replies == [])
        #expect(table[own.key]?.replies == Set(replies.prefix(2)))
        #expect(table[other.key]?.replies == [])
        #expect(table.session(answeredBy: replies[1])?.key == own.key)
        table[own.key] = nil
        table.learn(from: replies.map { .reply($0) })
        #expect(table[service.key]?.replies == Set(replies.prefix(2)))
    }

    @Test func `a reply is forgotten by a session of many connections, not by one of one`() throws {
        let (home, host) = try (endpoint("198.51.100.1:80"), endpoint("198.51.100.2:80"))
        let (client, other) = try (endpoint("192.0.2.1:1001"), endpoint("192.0.2.2:1001"))
        let many = Session(
            key: SessionKey(client: client.address, clientPort: nil, home: home), id: 1,
            binding: Binding(host: host, datapath: .queue))
        let one = Session(
            key: SessionKey(client: other.address, clientPort: other.port, home: home), id: 2,
            binding: Binding(host: host, datapath: .queue))
        var table = SessionTable([many, one])
        let replies = [client, Endpoint(address: client.address, port: 1002), other].map {
            FourTuple(source: host, destination: $0)
        }
        for reply in replies.prefix(2) { table.learn(reply, of: many.key) }
        table.learn(replies[2], of: one.key)
        #expect(Set(table.repliesOfMany) == Set(replies.prefix(2)))
        #expect(table.replyCount == 3 && table.replyCountOfMany == 2)
        #expect(replies.map(table.isOfOneConnection) == [false, false, true])
        for reply in [replies[0], replies[2], replies[0]] { table.forget(reply) }
        #expect(table[many.key]?.replies == [replies[1]] && table.session(answeredBy: replies[0]) == nil)
        #expect(table[one.key]?.replies == [replies[2]])
        // Without any it is a session that rests again.
        table.forget(replies[1])
        #expect(table[many.key] == many && table.repliesOfMany == [] && table.replyCount == 1)
        table.learn(replies[0], of: many.key)
        #expect(table.session(answeredBy: replies[0])?.key == many.key)
    }
}
