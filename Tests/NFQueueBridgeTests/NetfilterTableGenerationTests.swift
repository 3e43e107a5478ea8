// SPDX-License-Identifier: GPL-3.0-or-later

import Glibc
import NFQueueBridge
import Ruleset
import Testing
import Wire

private typealias Lab = NetfilterTableLab

@Suite(.enabled(if: NetfilterTableLab.isAvailable, Comment(rawValue: NetfilterTableLab.requirement)))
struct NetfilterTableGenerationTests {
    private func withTable(_ body: @escaping @Sendable (NetfilterTable) throws -> Void) throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            #expect(table.latestGeneration == nil && table.generation == nil)
            _ = try table.establish()
            table.keepTrack(from: table.latestGeneration)
            #expect(try table.generation == table.readGeneration())
            try body(table)
        }
    }

    private static func connection(_ port: UInt16, to host: String = "198.18.2.7:8443") throws -> TableElement {
        .connection(try Lab.tuple("198.18.1.2:\(port)", "198.18.2.6:443"), host: try Lab.endpoint(host))
    }

    @Test func `the table stays known through its own changes, also those that change nothing`() throws {
        try withTable { table in
            let elements = try Lab.everyKind()
            for change in [
                TableChange(adding: elements), TableChange(adding: elements), TableChange(remove: elements),
                TableChange(remove: elements),
            ] {
                try table.apply(change)
                #expect(try table.generation == table.readGeneration())
            }
        }
    }

    @Test func `anybody else's transaction is noticed, before and between its own`() throws {
        try withTable { table in
            _ = try Lab.nft("add table inet other")
            #expect(try table.generation != table.readGeneration())
            try table.apply(TableChange(adding: try Lab.everyKind()))
            #expect(table.generation == nil)
            // Nor is it known again by further changes.
            try table.apply(TableChange(remove: try Lab.everyKind()))
            #expect(table.generation == nil)
        }
    }

    @Test func `a change of its own that does nothing hides nobody else's`() throws {
        try withTable { table in
            let element = try Self.connection(1)
            try table.apply(TableChange(adding: [element]))
            _ = try Lab.nft("add table inet other")
            try table.apply(TableChange(adding: [element]))
            #expect(try table.generation != table.readGeneration())
        }
    }

    @Test func `a change that is refused leaves the table unknown`() throws {
        try withTable { table in
            try table.apply(TableChange(adding: [try Self.connection(1)]))
            #expect(throws: TableError.self) {
                try table.apply(TableChange(adding: [try Self.connection(1, to: "198.18.2.8:1")]))
            }
            #expect(table.generation == nil)
        }
    }

    @Test func `an element is there with its value and as long as it lives`() throws {
        try withTable { table in
            let elements = try Lab.everyKind()
            try table.apply(TableChange(adding: elements))
            for element in elements { #expect(try table.holds(element), "\(element)") }
            #expect(try !table.holds(Self.connection(1)))
            try table.apply(TableChange(adding: [Self.connection(1)], lifetime: 1))
            #expect(try table.holds(Self.connection(1)))
            #expect(try !table.holds(Self.connection(1, to: "198.18.2.8:1")))
            sleep(2)
            #expect(try !table.holds(Self.connection(1)))
            let learnt = elements.filter {
                switch $0 {
                case .reply, .icmpPeer: true
                default: false
                }
            }
            #expect(try table.learntElements() == Set(learnt))
            try table.remove()
            #expect(throws: TableError.self) { try table.holds(elements[0]) }
        }
    }

    @Test func `a new table has thousands of elements at once, and a refusal names the one`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            var additions = try (1...2500).flatMap { port in
                [try Self.connection(UInt16(port)), .reply(try Lab.tuple("198.18.2.7:1", "198.18.1.2:\(port)"))]
            }.map { TableChange.Addition(element: $0) }
            let clash = try Self.connection(700, to: "198.18.2.8:1")
            additions.insert(TableChange.Addition(element: clash), at: 3001)
            let error = #expect(throws: TableError.self) { try table.establish(carrying: additions) }
            #expect(error == .kernel(NetlinkError(operation: .createTable, errno: EEXIST), element: clash))
            #expect(try !table.exists)
            additions.remove(at: 3001)
            #expect(try table.establish(carrying: additions) == .created)
            #expect(try table.elements() == Set(additions.map(\.element)))
        }
    }
    @Test func `a set that begins with thousands of elements takes more than as many later`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            let elements = try (1...6000).map { try Self.connection(UInt16($0)) }
            let first = elements.prefix(2000)
            _ = try table.establish(carrying: first.map { TableChange.Addition(element: $0) })
            try table.apply(TableChange(adding: Array(elements.dropFirst(2000))))
            #expect(try table.elements() == Set(elements))
            // Its limit is no reason to make it anew.
            #expect(try NetfilterTable(Lab.options).establish() == .adopted)
        }
    }
}
