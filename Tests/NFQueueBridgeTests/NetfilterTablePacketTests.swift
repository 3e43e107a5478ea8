// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import NFQueueBridge
import Ruleset
import Testing
import Wire

private typealias Lab = NetfilterTableLab

/// The rules at work, on single packets.
@Suite(.serialized, .enabled(if: NetfilterTableLab.isAvailable, Comment(rawValue: NetfilterTableLab.requirement)))
struct NetfilterTablePacketTests {
    /// The addresses of one family.
    struct Ends: Sendable, CustomStringConvertible {
        var client: String
        var home: String
        var host: String
        var description: String { client }
        var clientAddress: String { client.replacing("[", with: "").replacing("]", with: "") }
        var homeAddress: String { home.replacing("[", with: "").replacing("]", with: "") }

        static let both = [
            Ends(client: "198.18.1.2", home: "198.18.2.6", host: "198.18.2.7"),
            Ends(client: "[2001:db8:1::2]", home: "[2001:db8:2::6]", host: "[2001:db8:2::7]"),
        ]
    }

    private func withWire(
        canDestroy: Bool = true, _ body: @escaping @Sendable (NetfilterTable, NetfilterTableWire) throws -> Void
    ) throws {
        try Lab.inNamespace {
            let wire = try NetfilterTableWire()
            defer { wire.remove() }
            let table = try NetfilterTable(Lab.options, canDestroy: canDestroy)
            _ = try table.establish()
            try body(table, wire)
        }
    }

    @Test(arguments: Ends.both)
    func `a new connection in the map is translated and its answer comes from home`(_ ends: Ends) throws {
        try withWire { table, wire in
            let bound = try Lab.tuple("\(ends.client):5000", "\(ends.home):443")
            try table.apply(TableChange(adding: [.connection(bound, host: try Lab.endpoint("\(ends.host):8443"))]))
            let seen = try wire.send(
                "client \(ends.client):5000>\(ends.home):443 S 1 0",
                "client \(ends.client):5001>\(ends.home):443 S 1 0")
            // Nobody listens: the host's kernel answers with RST.
            #expect(
                Set(seen) == [
                    "host \(ends.client):5000>\(ends.host):8443 S 1 0",
                    "client \(ends.home):443>\(ends.client):5000 RA 0 2",
                    "host \(ends.client):5001>\(ends.home):443 S 1 0",
                    "client \(ends.home):443>\(ends.client):5001 RA 0 2",
                ])
        }
    }

    @Test(arguments: Ends.both)
    func `every new connection of a bound client is translated`(_ ends: Ends) throws {
        try withWire { table, wire in
            let home = try Lab.endpoint("\(ends.home):443")
            let client = try Lab.endpoint("\(ends.client):0").address
            try table.apply(
                TableChange(adding: [.client(client, home: home, host: try Lab.endpoint("\(ends.host):443"))]))
            let seen = try wire.send(
                "client \(ends.client):5000>\(ends.home):443 S 1 0",
                "client \(ends.client):5001>\(ends.home):443 S 1 0",
                "client \(ends.client):5000>\(ends.home):80 S 1 0")
            #expect(
                Set(seen.filter { $0.hasPrefix("host") }) == [
                    "host \(ends.client):5000>\(ends.host):443 S 1 0",
                    "host \(ends.client):5001>\(ends.host):443 S 1 0",
                    "host \(ends.client):5000>\(ends.home):80 S 1 0",
                ])
        }
    }

    @Test(arguments: Ends.both)
    func `a guarded host is answered with a RST through a firewall that drops the invalid`(_ ends: Ends) throws {
        try withWire { table, wire in
            try Lab.nft(
                "table inet firewall { chain output { type filter hook output priority 0; ct state invalid drop; }; }")
            let speaking = try Lab.tuple("\(ends.home):443", "\(ends.client):5000")
            let segment = "host \(ends.home):443>\(ends.client):5000 A 1000 305419896"
            // Without the element that says where to look, nothing is looked up.
            try table.apply(TableChange(adding: [.guard(speaking)]))
            #expect(try wire.send(segment).isEmpty == false)
            try table.apply(TableChange(adding: [.involved(speaking.destination.address)]))
            // Without the element that keeps the RST untracked, the firewall has it.
            #expect(try wire.send(segment) == [])
            try table.apply(TableChange(adding: [.guarded(speaking.reversed)]))
            #expect(try wire.send(segment) == ["host \(ends.client):5000>\(ends.home):443 R 305419896 0"])
            // Its neighbour port is not guarded.
            #expect(
                try wire.send("host \(ends.home):443>\(ends.client):5001 A 1000 1").contains(
                    "client \(ends.home):443>\(ends.client):5001 A 1000 1"))
        }
    }

    @Test(arguments: Ends.both)
    func `a diverted segment is dropped while nobody listens to the queue`(_ ends: Ends) throws {
        try withWire { table, wire in
            let home = try Lab.endpoint("\(ends.home):443")
            let tuple = try Lab.tuple("\(ends.client):5000", "\(ends.home):80")
            try table.apply(
                TableChange(adding: [
                    .involved(home.address), .answering(home.address), .divert(tuple),
                    .divertClient(client: tuple.source.address, home: home),
                    .reply(try Lab.tuple("\(ends.home):22", "\(ends.client):5000")),
                ]))
            let seen = try wire.send(
                "client \(ends.client):5000>\(ends.home):80 A 1 1",
                "client \(ends.client):5000>\(ends.home):443 A 1 1",
                "client \(ends.client):5001>\(ends.home):443 A 1 1",
                "host \(ends.home):22>\(ends.client):5000 A 1 1",
                "client \(ends.client):5001>\(ends.home):80 R 1 1")
            #expect(seen == ["host \(ends.client):5001>\(ends.home):80 R 1 1"])
        }
    }

    @Test(arguments: Ends.both)
    func `of a client with a credit only segments that open a connection are diverted`(_ ends: Ends) throws {
        try withWire { table, wire in
            let (client, home) = (try Lab.endpoint("\(ends.client):1"), try Lab.endpoint("\(ends.home):80"))
            try table.apply(
                TableChange(adding: [.involved(home.address), .credit(client: client.address, home: home)]))
            // Our table's only: no other port, no other home, and no SYN with ACK, FIN or RST.
            let flags = ["S", "A", "SA", "SR", "SF", "F", "R"]
            for flag in flags {
                let segment = "\(ends.client):5000>\(ends.home):80 \(flag) 1 1"
                let seen = try wire.send("client " + segment)
                #expect(seen.isEmpty == (flag == "S"), "\(flag)")
            }
            let elsewhere = try wire.send("client \(ends.client):5000>\(ends.home):81 S 1 1")
            #expect(elsewhere.contains("host \(ends.client):5000>\(ends.home):81 S 1 1"), "\(elsewhere)")
        }
    }

    @Test(arguments: Ends.both)
    func `ICMP errors for a home and for its client are diverted and nothing else of ICMP`(_ ends: Ends) throws {
        try withWire { table, wire in
            let packets = [
                "client \(ends.clientAddress)>\(ends.homeAddress) unreachable",
                "client \(ends.clientAddress)>\(ends.homeAddress) echo",
                "host \(ends.homeAddress)>\(ends.clientAddress) unreachable",
                "host \(ends.homeAddress)>\(ends.clientAddress) echo",
            ]
            let echoes: Set = [
                "host \(ends.clientAddress)>\(ends.homeAddress) echo",
                "client \(ends.homeAddress)>\(ends.clientAddress) echo",
            ]
            let (toHome, toClient) = (
                "host \(ends.clientAddress)>\(ends.homeAddress) unreachable",
                "client \(ends.homeAddress)>\(ends.clientAddress) unreachable"
            )
            let home = TableElement.icmpHome(try Lab.endpoint("\(ends.home):1").address)
            let peer = TableElement.icmpPeer(try Lab.endpoint("\(ends.client):1").address)
            func seen() throws -> Set<String> { Set(try wire.send(packets[0], packets[1], packets[2], packets[3])) }
            #expect(try seen() == echoes.union([toHome, toClient]))
            try table.apply(TableChange(adding: [home, .involved(try Lab.endpoint("\(ends.home):1").address)]))
            #expect(try seen() == echoes.union([toClient]))
            // Whose replies go to a queue does not matter: the error comes from anywhere on the way.
            let answering = TableElement.answering(try Lab.endpoint("\(ends.host):1").address)
            try table.apply(TableChange(remove: [home], add: [peer, answering].map { .init(element: $0) }))
            #expect(try seen() == echoes.union([toHome]))
        }
    }

    @Test(arguments: Ends.both)
    func `a packet with our mark teaches its reply and loses the mark`(_ ends: Ends) throws {
        try withWire { table, wire in
            // As it is when a verdict with this mark brings it back to our chain.
            try Lab.nft(
                """
                table inet test {
                    chain verdict {
                        type filter hook prerouting priority -305
                        tcp dport 8443 meta mark set 0x6e680000
                    }
                    chain forward {
                        type filter hook forward priority 0
                        meta mark != 0 drop
                    }
                }
                """)
            let reply = try Lab.tuple("\(ends.host):8443", "\(ends.client):5000")
            let involved = TableElement.involved(reply.source.address)
            let answering = TableElement.answering(reply.source.address)
            try table.apply(TableChange(adding: [involved, answering]))
            let seen = try wire.send("client \(ends.client):5000>\(ends.host):8443 A 1 1")
            #expect(seen == ["host \(ends.client):5000>\(ends.host):8443 A 1 1"])
            #expect(
                try Set(table.elements()) == [involved, answering, .reply(reply), .icmpPeer(reply.destination.address)])
        }
    }

    /// A chain in front of ours that gives segments to and from some ports a mark, as a verdict does.
    private func mark(_ hook: String, _ priority: Int, _ rules: String...) throws {
        try Lab.nft(
            """
            table inet verdict_\(hook) {
                chain verdict {
                    type filter hook \(hook) priority \(priority)
                    \(rules.joined(separator: "\n        "))
                }
            }
            table inet test_\(hook) {
                chain marked {
                    type filter hook forward priority 0
                    meta mark != 0 drop
                }
            }
            """)
    }

    @Test(arguments: Ends.both)
    func `the kernel writes what a mark stands for and what it does not know is dropped`(_ ends: Ends) throws {
        try withWire { table, wire in
            try mark(
                "prerouting", -305, "tcp dport 80 meta mark set 0x6e600001", "tcp dport 81 meta mark set 0x6e680001",
                "tcp dport 82 meta mark set 0x6e640002", "tcp dport 83 meta mark set 0x6e600003",
                "tcp dport 84 meta mark set 0x6e500001")
            let host = try Lab.endpoint("\(ends.host):8443")
            let family = host.address.family
            try table.apply(
                TableChange(adding: [
                    .involved(try Lab.endpoint("\(ends.home):1").address),
                    .endpointAddress(number: 1, host.address), .endpointPort(number: 1, 8443, family),
                    .endpointAddress(number: 2, host.address), .endpointPort(number: 2, 8444, family),
                    .clientPort(number: 2, 1023, family),
                ]))
            func seen(_ port: Int) throws -> [String] {
                // What arrives at the host; its RST comes back some way or other.
                try wire.send("client \(ends.client):5000>\(ends.home):\(port) A 1 1").filter { $0.hasPrefix("host ") }
            }
            #expect(try seen(80) == ["host \(ends.client):5000>\(ends.host):8443 A 1 1"])
            #expect(try table.elements().contains { if case .reply = $0 { true } else { false } } == false)
            #expect(try seen(81) == ["host \(ends.client):5000>\(ends.host):8443 A 1 1"])
            #expect(try table.elements().contains(.reply(try Lab.tuple("\(ends.host):8443", "\(ends.client):5000"))))
            #expect(try seen(82) == ["host \(ends.client):1023>\(ends.host):8444 A 1 1"])
            #expect(try seen(83) == [])
            // Somebody else's mark: our table leaves the packet alone, and the test's rule sees the mark.
            #expect(try seen(84) == [])
        }
    }

    @Test(arguments: [true, false])
    func `the kernel carries what user space has judged until something about it changes`(_ canDestroy: Bool) throws {
        let ends = Ends.both[0]
        try withWire(canDestroy: canDestroy) { table, wire in
            // Verdicts, on SYNs alone: first to the one host, then, where the sequence number says so, to the other.
            try mark(
                "prerouting", -305, "tcp flags syn tcp sequence 1 meta mark set 0x6e680001",
                "tcp flags syn tcp sequence 2 meta mark set 0x6e6c0002")
            try mark("postrouting", -155, "tcp flags syn tcp sport 8443 meta mark set 0x6e680003")
            let home = try Lab.endpoint("\(ends.home):80")
            let host = try Lab.endpoint("\(ends.host):8443")
            let translations: [TableElement] = [
                .endpointAddress(number: 1, host.address), .endpointPort(number: 1, 8443, .ipv4),
                .endpointAddress(number: 2, host.address), .endpointPort(number: 2, 8444, .ipv4),
                .clientPort(number: 2, 1023, .ipv4),
                .endpointAddress(number: 3, home.address), .endpointPort(number: 3, 80, .ipv4),
            ]
            let homes: [TableElement] = [
                .involved(home.address), .icmpHome(home.address), .answering(host.address),
            ]
            try table.apply(TableChange(adding: translations + homes))
            let tuple = try Lab.tuple("\(ends.client):5000", "\(ends.home):80")
            func seen(_ flags: String, _ sequence: Int = 7) throws -> [String] {
                try wire.send("client \(ends.client):5000>\(ends.home):80 \(flags) \(sequence) 1").filter {
                    $0.hasPrefix("host ")
                }
            }
            func toHost(_ segment: String, from port: Int = 5000, to hostPort: Int = 8443) -> [String] {
                ["host \(ends.client):\(port)>\(ends.host):\(hostPort) \(segment) 1"]
            }
            let untouched = ["host \(ends.client):5000>\(ends.home):80 A 7 1"]
            #expect(try seen("A") == untouched)
            #expect(try seen("S", 1) == toHost("S 1"))
            #expect(try seen("A") == toHost("A 7"))
            // A SYN comes without a mark first, and nothing is left of what was; this one user space lets pass as it is.
            #expect(try seen("S", 3) == ["host \(ends.client):5000>\(ends.home):80 S 3 1"])
            #expect(try seen("A") == untouched)
            #expect(try seen("S", 2) == toHost("S 2", from: 1023, to: 8444))
            #expect(try seen("A") == toHost("A 7", from: 1023, to: 8444))
            #expect(try seen("S", 3) != [])
            // Replies, from the one with SYN on.
            func back(_ flags: String) throws -> [String] {
                try wire.send("host \(ends.host):8443>\(ends.client):5000 \(flags) 9 1").filter {
                    $0.hasPrefix("client ")
                }
            }
            // Nobody listens to the queue.
            #expect(try back("A") == [])
            #expect(try back("SA") == ["client \(ends.home):80>\(ends.client):5000 SA 9 1"])
            #expect(try back("A") == ["client \(ends.home):80>\(ends.client):5000 A 9 1"])
            // Transit comes first, and afterwards nothing is left, whether the daemon ends it or its time.
            for lifetime: UInt32? in [nil, 1] {
                #expect(try seen("S", 1) == toHost("S 1"))
                try table.apply(TableChange(adding: [.divert(tuple)], lifetime: lifetime))
                #expect(try seen("A") == [])
                if lifetime == nil {
                    try table.apply(TableChange(remove: [.divert(tuple)]))
                } else {
                    Thread.sleep(forTimeInterval: 1)
                }
                #expect(try seen("A") == untouched)
            }
            // The end of its reply and of its binding, a change of its host, and of many's, and the end of any translation.
            let reply = try Lab.tuple("\(ends.host):8443", "\(ends.client):5000")
            try table.apply(TableChange(remove: [.reply(reply)]))
            #expect(try back("A") == ["client \(ends.host):8443>\(ends.client):5000 A 9 1"])
            let another = try Lab.endpoint("198.18.2.9:1").address
            var (turn, turnAll) = (TableChange(), TableChange())
            turn.forget = [tuple]
            turnAll.forgetsAll = true
            for change in [
                TableChange(remove: [.divertConnection(tuple)]), turn, turnAll,
                TableChange(remove: [.endpointAddress(number: 9, another)]),
            ] {
                #expect(try seen("S", 1) == toHost("S 1"))
                #expect(try seen("A") == toHost("A 7"))
                try table.apply(change)
                #expect(try seen("A") == untouched, "\(change)")
            }
        }
    }

    @Test(arguments: Ends.both)
    func `a reply gets the source that its mark stands for`(_ ends: Ends) throws {
        try withWire { table, wire in
            try mark(
                "postrouting", -155, "tcp sport 8443 meta mark set 0x6e600001",
                "tcp sport 8444 meta mark set 0x6e640002", "tcp sport 8445 meta mark set 0x6e600003",
                "tcp sport 8446 meta mark set 0x6e600000")
            let home = try Lab.endpoint("\(ends.home):80")
            let family = home.address.family
            try table.apply(
                TableChange(adding: [
                    .answering(try Lab.endpoint("\(ends.host):1").address),
                    .endpointAddress(number: 1, home.address), .endpointPort(number: 1, 80, family),
                    .endpointAddress(number: 2, home.address), .endpointPort(number: 2, 80, family),
                    .clientPort(number: 2, 5001, family),
                ]))
            func seen(_ port: Int) throws -> [String] {
                try wire.send("host \(ends.host):\(port)>\(ends.client):5000 A 1 1").filter { $0.hasPrefix("client ") }
            }
            #expect(try seen(8443) == ["client \(ends.home):80>\(ends.client):5000 A 1 1"])
            #expect(try seen(8444) == ["client \(ends.home):80>\(ends.client):5001 A 1 1"])
            #expect(try seen(8445) == [])
            #expect(try seen(8446) == ["client \(ends.host):8446>\(ends.client):5000 A 1 1"])
        }
    }

    @Test(arguments: Ends.both)
    func `our own marked segments are untracked and are not diverted`(_ ends: Ends) throws {
        try withWire { table, _ in
            try Lab.nft(
                """
                table inet test {
                    chain output {
                        type filter hook postrouting priority 300
                        tcp dport 5000 meta mark 0x6e600000 ct state untracked counter
                        tcp dport 5000 meta mark 0 counter
                    }
                }
                """)
            let isIPv6 = ends.client.hasPrefix("[")
            let gateway = isIPv6 ? "[2001:db8:1::1]" : "198.18.1.1"
            let sender = """
                import socket, struct, sys
                s = socket.socket(socket.\(isIPv6 ? "AF_INET6" : "AF_INET"), socket.SOCK_RAW, socket.IPPROTO_TCP)
                for mark in sys.argv[1:]:
                    s.setsockopt(socket.SOL_SOCKET, 36, int(mark, 0))
                    segment = struct.pack("!HHLLBBHHH", 999, 5000, 1, 1, 0x50, 16, 1000, 0, 0)
                    s.sendto(segment, ("\(ends.clientAddress)", 0))
                """
            func counters() throws -> [Substring] {
                try Lab.shell("nft list table inet test").split(separator: "\n").filter { $0.contains("counter") }
            }
            try Lab.shell("/usr/bin/python3 - 0x6e600000 0", input: sender)
            #expect(try counters().allSatisfy { $0.contains("packets 1 ") })
            // A tuple whose segments go to a queue, which nobody serves.
            let own = try Lab.tuple("\(gateway):999", "\(ends.client):5000")
            try table.apply(TableChange(adding: [.answering(own.source.address), .reply(own)]))
            try Lab.shell("/usr/bin/python3 - 0x6e600000 0", input: sender)
            let after = try counters()
            #expect(after.first?.contains("packets 2 ") == true && after.last?.contains("packets 1 ") == true)
        }
    }
}
