// SPDX-License-Identifier: GPL-3.0-or-later

import Conntrack
import Daemon
import Testing
import Wire

@Suite struct AnnouncedConnectionsTests {
    private func entry(_ port: Int) throws -> ConnectionEntry {
        let tuple = FourTuple(
            source: Endpoint(address: try #require(IPAddress("192.0.2.1")), port: UInt16(port)),
            destination: try #require(Endpoint("198.51.100.1:80")))
        return ConnectionEntry(original: tuple, reply: tuple.reversed, zone: 7)
    }

    @Test func `what was announced since a moment is known, until there was too much or some was missed`() throws {
        var announced = AnnouncedConnections()
        let start = announced.count
        try announced.append(entry(1))
        let middle = announced.count
        try announced.append(entry(2))
        #expect(announced.since(start)?.map(\.tuple.source.port) == [1, 2])
        #expect(announced.since(middle)?.map(\.tuple.source.port) == [2])
        #expect(announced.since(middle)?.first?.zone == 7)
        #expect(announced.since(announced.count)?.isEmpty == true)

        for port in 0..<AnnouncedConnections.most { try announced.append(entry(port)) }
        #expect(announced.since(start) == nil && announced.since(middle) == nil)
        let last = announced.count - 1
        #expect(announced.since(last)?.map(\.tuple.source.port) == [UInt16(AnnouncedConnections.most - 1)])

        let before = announced.count
        announced.miss()
        #expect(announced.since(before) == nil)
        #expect(announced.since(announced.count)?.isEmpty == true)
    }
}
