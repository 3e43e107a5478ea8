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
}
