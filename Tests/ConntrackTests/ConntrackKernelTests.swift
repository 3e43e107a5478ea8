// SPDX-License-Identifier: GPL-3.0-or-later

import Conntrack
import Foundation
import Glibc
import Testing
import Wire

/// Conntrack of this machine's kernel, with real connections translated by a gateway.
@Suite(.enabled(if: Lab.obstacle == nil, Comment(rawValue: Lab.obstacle ?? "")), .serialized)
struct ConntrackKernelTests {
    /// A client, a gateway that translates 198.18.2.9:80 (2001:db8:2::9) to the server's port 5000, a server.
    final class Scene {
        let lab: Lab
        let table: ConntrackTable
        let listeners: [AddressFamily: TCPSocket]

        init() throws {
            lab = try Lab()
            try lab.nft(
                .gateway,
                """
                table inet nat {
                  chain pre { type nat hook prerouting priority -100
                    ip daddr 198.18.2.9 tcp dport 80 dnat ip to 198.18.2.2:5000
                    ip6 daddr 2001:db8:2::9 tcp dport 80 dnat ip6 to [2001:db8:2::2]:5000
                  }
                }
                """)
            try lab.run(.gateway, "sysctl -qw net.netfilter.nf_conntrack_acct=1")
            table = try lab.inside(.gateway) { try ConntrackTable() }
            var listeners: [AddressFamily: TCPSocket] = [:]
            for family in AddressFamily.allCases {
                listeners[family] = try TCPSocket.listen(
                    lab, .server, Endpoint(address: Lab.address(.server, family), port: 5000))
            }
            self.listeners = listeners
        }

        static func home(_ family: AddressFamily) -> Endpoint {
            let address: IPAddress? = family == .ipv4 ? IPAddress("198.18.2.9") : IPAddress("2001:db8:2::9")
            return Endpoint(address: address ?? Lab.address(.server, family), port: 80)
        }

        func client(_ family: AddressFamily, port: UInt16) -> Endpoint {
            Endpoint(address: Lab.address(.client, family), port: port)
        }

        func connect(_ family: AddressFamily, port: UInt16) throws -> [TCPSocket] {
            let socket = try TCPSocket.connect(lab, from: client(family, port: port), to: Self.home(family))
            guard let listener = listeners[family] else { throw Lab.Failure(description: "no listener") }
            return [socket, try listener.accept()]
        }
    }

    @Test(arguments: AddressFamily.allCases)
    func `a translated connection is found by both tuples`(family: AddressFamily) throws {
        let scene = try Scene()
        let sockets = try scene.connect(family, port: 41_000)
        // An optimised build would close them at their last use.
        defer { withExtendedLifetime(sockets) {} }
        #expect(sockets[0].write(100) == 100)
        usleep(20_000)
        let original = FourTuple(source: scene.client(family, port: 41_000), destination: Scene.home(family))
        let reply = FourTuple(
            source: Endpoint(address: Lab.address(.server, family), port: 5000),
            destination: scene.client(family, port: 41_000))
        let entry = try #require(try scene.table.entry(original: original))
        #expect(entry.original == original)
        #expect(entry.reply == reply)
        #expect(entry.state == .established)
        #expect(entry.isAssured)
        #expect(entry.isDestinationTranslated)
        #expect(!entry.isSourceTranslated)
        #expect(entry.timeout > 400_000)
        #expect((entry.originalCount?.packets ?? 0) >= 3)
        #expect((entry.originalCount?.octets ?? 0) > 200)
        #expect(try scene.table.entry(reply: reply)?.id == entry.id)
        // Each tuple is one direction's only.
        #expect(try scene.table.entry(original: reply) == nil)
        #expect(try scene.table.entry(reply: original) == nil)
        #expect(try scene.table.entry(original: original, zone: 5) == nil)
    }

    @Test func `a dump gives all, one client's, and what a filter wants`() throws {
        let scene = try Scene()
        var sockets: [TCPSocket] = []
        for port in UInt16(41_000)..<41_020 { sockets += try scene.connect(.ipv4, port: port) }
        for port in UInt16(41_000)..<41_010 { sockets += try scene.connect(.ipv6, port: port) }
        // Not TCP, and so not listed.
        _ = try? scene.lab.run(.client, "ping -c 1 -w 1 198.18.2.2")
        #expect(try scene.table.entries().count == 30)
        #expect(try scene.table.entries(client: Lab.address(.client, .ipv4)).count == 20)
        #expect(try scene.table.entries(client: Lab.address(.client, .ipv6)).count == 10)
        #expect(try scene.table.entries(client: Lab.address(.server, .ipv4)).isEmpty)
        // By IPv6 address it is not the kernel that filters.
        #expect(try scene.table.entries(client: Lab.address(.server, .ipv6)).isEmpty)
        #expect(try scene.table.entries { $0.original.source.port < 41_005 }.count == 10)
        let entry = try #require(try scene.table.entries(client: Lab.address(.client, .ipv6)).first)
        #expect(entry.original.destination == Scene.home(.ipv6))
        #expect(entry.state == .established)
        withExtendedLifetime(sockets) {}
    }

    @Test(arguments: AddressFamily.allCases)
    func `an entry is deleted once, and only itself`(family: AddressFamily) throws {
        let scene = try Scene()
        let sockets = try scene.connect(family, port: 41_000) + scene.connect(family, port: 41_001)
        let original = FourTuple(source: scene.client(family, port: 41_000), destination: Scene.home(family))
        let entry = try #require(try scene.table.entry(original: original))
        var other = entry
        other.id ^= 1
        #expect(try scene.table.delete(other) == false, "a newer entry of the same tuple")
        #expect(try scene.table.entry(original: original) != nil)
        other = entry
        other.zone = 3
        #expect(try scene.table.delete(other) == false, "an entry of another zone")
        #expect(try scene.table.delete(entry) == true)
        #expect(try scene.table.delete(entry) == false)
        #expect(try scene.table.entry(original: original) == nil)
        #expect(try scene.table.entries().map(\.original.source.port) == [41_001])
        withExtendedLifetime(sockets) {}
    }

    @Test(arguments: AddressFamily.allCases)
    func `a connection's life is reported, and no other protocol's`(family: AddressFamily) throws {
        let scene = try Scene()
        let events = try scene.lab.inside(.gateway) { try ConntrackEvents() }
        _ = try? scene.lab.run(.client, "ping -c 1 -w 1 198.18.2.2")
        var seen: [ConntrackEvent] = []
        try events.drain { seen.append($0) }
        #expect(seen.isEmpty)
        let sockets = try scene.connect(family, port: 41_000)
        usleep(20_000)
        var poller = pollfd(fd: events.fileDescriptor, events: Int16(POLLIN), revents: 0)
        #expect(poll(&poller, 1, 1000) == 1)
        try events.drain { seen.append($0) }
        let states = seen.map { event -> String in
            switch event {
            case .new(let entry): "new \(entry.state.map { "\($0)" } ?? "-") \(entry.original.source.port)"
            case .updated(let entry): "updated \(entry.state.map { "\($0)" } ?? "-") \(entry.original.source.port)"
            case .destroyed, .lost: "other"
            }
        }
        #expect(
            states.prefix(3) == ["new synSent 41000", "updated synReceived 41000", "updated established 41000"])
        let entry = try #require(try scene.table.entries().first)
        if case .new(let first) = seen.first {
            #expect(first.id == entry.id)
            #expect(first.reply == entry.reply)
        }
        #expect(try scene.table.delete(entry))
        seen = []
        try events.drain { seen.append($0) }
        guard case .destroyed(let last) = seen.last else {
            Issue.record("no end was reported: \(seen)")
            return
        }
        #expect(last.original == entry.original)
        #expect(last.id == entry.id)
        withExtendedLifetime(sockets) {}
    }

    @Test func `lost events are a value`() throws {
        let scene = try Scene()
        let events = try scene.lab.inside(.gateway) { try ConntrackEvents(receiveBuffer: 4096) }
        var sockets: [TCPSocket] = []
        for port in UInt16(41_000)..<41_040 { sockets += try scene.connect(.ipv4, port: port) }
        var seen: [ConntrackEvent] = []
        try events.drain { seen.append($0) }
        #expect(seen.contains(.lost))
        #expect(seen.count < 120)
        // And it goes on.
        seen = []
        sockets += try scene.connect(.ipv4, port: 42_000)
        usleep(20_000)
        try events.drain { seen.append($0) }
        #expect(seen.contains { if case .new = $0 { true } else { false } })
        withExtendedLifetime(sockets) {}
    }
}
