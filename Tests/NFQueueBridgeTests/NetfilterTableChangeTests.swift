// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import Glibc
import NFQueueBridge
import Ruleset
import Testing
import Wire

private typealias Lab = NetfilterTableLab

@Suite(.enabled(if: NetfilterTableLab.isAvailable, Comment(rawValue: NetfilterTableLab.requirement)))
struct NetfilterTableChangeTests {
    /// Once as the kernel is, and once as one would be that cannot remove what may not be there.
    private func withTable(_ body: @escaping @Sendable (NetfilterTable) throws -> Void) throws {
        for canDestroy in [true, false] {
            try Lab.inNamespace {
                let table = try NetfilterTable(Lab.options, canDestroy: canDestroy)
                _ = try table.establish()
                try body(table)
            }
        }
    }

    @Test func `removing what is not there succeeds`() throws {
        try withTable { table in
            try table.apply(TableChange(remove: try Lab.everyKind()))
            #expect(try table.elements() == [])
            let elements = try Lab.everyKind()
            try table.apply(TableChange(adding: [elements[3]]))
            try table.apply(TableChange(remove: elements + elements))
            #expect(try table.elements() == [])
        }
    }

    @Test func `a removal is by key whatever the value`() throws {
        try withTable { table in
            let tuple = try Lab.tuple("198.18.1.2:1", "198.18.2.6:2")
            let (b, c) = (try Lab.endpoint("198.18.2.7:2"), try Lab.endpoint("198.18.2.8:2"))
            try table.apply(TableChange(adding: [.connection(tuple, host: b)]))
            try table.apply(TableChange(remove: [.connection(tuple, host: c), .guarded(tuple)]))
            #expect(try table.elements() == [])
        }
    }

    @Test func `one change turns a diversion into a guard and moves a host`() throws {
        try withTable { table in
            let tuple = try Lab.tuple("[2001:db8::1]:1", "[2001:db8::2]:2")
            let (b, c) = (try Lab.endpoint("[2001:db8::3]:2"), try Lab.endpoint("[2001:db8::4]:2"))
            let before: [TableElement] = [.divert(tuple), .connection(tuple, host: b)]
            let after: [TableElement] = [.guard(tuple), .connection(tuple, host: c)]
            try table.apply(TableChange(adding: before))
            try table.apply(TableChange(remove: before, add: after.map { .init(element: $0) }))
            #expect(Set(try table.elements()) == Set(after))
            // The same once more: what is removed has the other value now.
            try table.apply(TableChange(remove: before, add: before.map { .init(element: $0) }))
            #expect(Set(try table.elements()) == Set(before + [after[0]]))
        }
    }

    @Test func `a change that fails changes nothing and names the element`() throws {
        try withTable { table in
            let tuple = try Lab.tuple("198.18.1.2:1", "198.18.2.6:2")
            let other = try Lab.tuple("198.18.1.2:3", "198.18.2.6:2")
            let kept = TableElement.connection(tuple, host: try Lab.endpoint("198.18.2.7:2"))
            let guarded = TableElement.guarded(tuple)
            let clash = TableElement.connection(tuple, host: try Lab.endpoint("198.18.2.8:2"))
            try table.apply(TableChange(adding: [kept, guarded]))
            let error = #expect(throws: TableError.self) {
                try table.apply(
                    TableChange(remove: [guarded], add: [.init(element: .reply(other)), .init(element: clash)]))
            }
            #expect(error == .kernel(NetlinkError(operation: .changeTable, errno: EEXIST), element: clash))
            #expect(Set(try table.elements()) == [kept, guarded])
        }
    }

    @Test func `addresses of both families are refused before anything changes`() throws {
        try withTable { table in
            let (four, six) = (try Lab.endpoint("198.18.1.2:1"), try Lab.endpoint("[2001:db8::1]:1"))
            let pair = FourTuple(source: four, destination: four)
            let mixed: [TableElement] = [
                .divert(FourTuple(source: four, destination: six)),
                .divertClient(client: six.address, home: four),
                .connection(pair, host: six),
                .client(four.address, home: four, host: six),
                .client(four.address, home: six, host: four),
                .guarded(FourTuple(source: six, destination: four)),
            ]
            for element in mixed {
                for change in [TableChange(remove: [element]), TableChange(adding: [.guarded(pair), element])] {
                    #expect(throws: TableError.mixedFamilies(MixedFamilies(element: element))) {
                        try table.apply(change)
                    }
                }
            }
            #expect(try table.elements() == [])
        }
    }

    @Test func `without a table a change is an error`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            let element = TableElement.icmpHome(try Lab.endpoint("198.18.0.1:0").address)
            let expected = TableError.kernel(NetlinkError(operation: .changeTable, errno: ENOENT), element: element)
            #expect(throws: expected) { try table.apply(TableChange(adding: [element])) }
            #expect(throws: expected) { try table.apply(TableChange(remove: [element])) }
            #expect(throws: NetlinkError(operation: .readTable, errno: ENOENT)) { try table.elements() }
        }
    }

    @Test func `what packets fill is read with its age, except for what is about to go`() throws {
        try withTable { table in
            let replies = try (1...3).map { try Lab.tuple("198.18.2.7:80", "198.18.1.2:\($0)") }
            let peer = TableElement.icmpPeer(replies[0].destination.address)
            let six = TableElement.reply(try Lab.tuple("[2001:db8:2::7]:80", "[2001:db8:1::2]:1"))
            try table.apply(TableChange(adding: [.reply(replies[0]), peer, six, .involved(replies[0].source.address)]))
            // As if a packet had come four days ago.
            try table.apply(TableChange(adding: [.reply(replies[1])], lifetime: 86_400))
            try table.apply(TableChange(adding: [.reply(replies[2])], lifetime: 5))
            var ages: [TableElement: UInt64] = [:]
            try table.forEachLearnt(lasting: 10_000) { ages[$0] = $1 / 60_000 }
            #expect(ages == [.reply(replies[0]): 0, peer: 0, six: 0, .reply(replies[1]): 4 * 24 * 60])
            // One that is there may be given another lifetime, at once.
            try table.apply(
                TableChange(remove: [peer, six], add: [.init(element: peer, lifetime: 5), .init(element: six)]))
            ages = [:]
            try table.forEachLearnt(lasting: 10_000) { ages[$0] = $1 / 60_000 }
            #expect(Set(ages.keys) == [.reply(replies[0]), six, .reply(replies[1])])
        }
    }

    @Test func `an element with a lifetime goes by itself and one without stays`() throws {
        try withTable { table in
            let tuple = try Lab.tuple("198.18.1.2:1", "198.18.2.6:2")
            let short = TableElement.divert(tuple)
            try table.apply(TableChange(adding: [short], lifetime: 1))
            try table.apply(TableChange(adding: [.guarded(tuple)]))
            #expect(Set(try table.elements()) == [short, .guarded(tuple)])
            Thread.sleep(forTimeInterval: 1.3)
            #expect(try table.elements() == [.guarded(tuple)])
            // Gone, but perhaps not yet collected: both removing and adding it must work.
            try table.apply(TableChange(remove: [short]))
            try table.apply(TableChange(adding: [short], lifetime: 1))
            Thread.sleep(forTimeInterval: 1.3)
            try table.apply(TableChange(adding: [short], lifetime: 100))
            #expect(try table.elements().contains(short))
        }
    }

    @Test func `removing and adding starts a lifetime anew`() throws {
        try withTable { table in
            let element = TableElement.guard(try Lab.tuple("198.18.1.2:1", "198.18.2.6:2"))
            try table.apply(TableChange(adding: [element], lifetime: 1))
            try table.apply(TableChange(remove: [element], add: [.init(element: element, lifetime: 1000)]))
            Thread.sleep(forTimeInterval: 1.3)
            #expect(try table.elements() == [element])
            #expect(try Lab.shell("nft list set inet nfqmigd guard4").contains("timeout 16m40s"))
        }
    }

    @Test func `a learnt reply lives five days unless told otherwise`() throws {
        try withTable { table in
            try table.apply(TableChange(adding: [.reply(try Lab.tuple("198.18.2.7:443", "198.18.1.2:1"))]))
            let text = try Lab.shell("nft list set inet nfqmigd replies4")
            // Five days less the moment that has passed, if one of the kernel's ticks has.
            #expect(text.contains("expires 4d23h5") || text.contains("expires 5d"), "\(text)")
        }
    }

    @Test func `twenty thousand elements are one transaction`() throws {
        try withTable { table in
            let home = try Lab.endpoint("198.18.2.6:443")
            let host = try Lab.endpoint("198.18.2.7:8443")
            let tuples = (0..<20_000).map { index in
                let client = IPAddress.v4(IPv4Address(rawValue: 0xc613_0000 + UInt32(index >> 8)))
                return FourTuple(
                    source: Endpoint(address: client, port: UInt16(40_000 + index & 0xff)), destination: home)
            }
            let elements = tuples.map { TableElement.connection($0, host: host) }
            try table.apply(TableChange(adding: elements))
            #expect(Set(try table.elements()) == Set(elements))

            // All removed but the last, which has another value by then; the whole of it fails.
            let clash = TableElement.connection(tuples[19_999], host: home)
            #expect(throws: TableError.kernel(NetlinkError(operation: .changeTable, errno: EEXIST), element: clash)) {
                try table.apply(TableChange(remove: Array(elements.dropLast()), add: [.init(element: clash)]))
            }
            #expect(try table.elements().count == 20_000)

            let moved = tuples.map { TableElement.connection($0, host: home) }
            try table.apply(TableChange(remove: moved))
            #expect(try table.elements() == [])
        }
    }

    @Test func `a full set of replies still takes removals and refuses additions`() throws {
        try withTable { table in
            let host = try Lab.endpoint("198.18.2.7:443")
            func reply(_ index: UInt32) -> TableElement {
                let client = IPAddress.v4(IPv4Address(rawValue: 0xc612_0000 + index % 65_536))
                return .reply(
                    FourTuple(source: host, destination: Endpoint(address: client, port: UInt16(1 + index / 65_536))))
            }
            try table.apply(TableChange(adding: (0..<262_144).map(reply)))
            let full = TableError.kernel(NetlinkError(operation: .changeTable, errno: ENFILE), element: reply(300_000))
            #expect(throws: full) {
                try table.apply(TableChange(adding: [reply(300_000)]))
            }
            try table.apply(TableChange(remove: [reply(300_001)]))
            try table.apply(TableChange(remove: [reply(5), reply(300_002)]))
            #expect(try table.elements().count == 262_143)
            try table.apply(TableChange(adding: [reply(300_000)]))
            // As a sweep lets elements go: there is room for those in whose place they come.
            let letGo = (0..<3).map { TableChange.Addition(element: reply($0), lifetime: 9) }
            try table.apply(TableChange(remove: letGo.map(\.element), add: letGo))
            #expect(try table.elements().count == 262_144)
        }
    }

    @Test func `changes go through while another program changes its own tables`() throws {
        try withTable { table in
            try Lab.nft("table inet other { set s { type ipv4_addr; }; }")
            let flag = FileManager.default.temporaryDirectory.appendingPathComponent("nfqmig-\(UUID().uuidString)").path
            // Stops by itself when the flag file goes.
            try Lab.shell(
                "touch \(flag); (while test -e \(flag); do nft 'add element inet other s { 198.18.0.1 }; "
                    + "delete element inet other s { 198.18.0.1 }'; done) >/dev/null 2>&1 &")
            defer { try? FileManager.default.removeItem(atPath: flag) }
            let elements = try Lab.everyKind()
            for _ in 0..<200 {
                try table.apply(TableChange(adding: elements))
                #expect(Set(try table.elements()) == Set(elements))
                try table.apply(TableChange(remove: elements))
            }
        }
    }
}
