// SPDX-License-Identifier: GPL-3.0-or-later

import NFQueueBridge
import Ruleset
import Testing
import Wire

private typealias Lab = NetfilterTableLab

@Suite(.enabled(if: NetfilterTableLab.isAvailable, Comment(rawValue: NetfilterTableLab.requirement)))
struct NetfilterTableConditionTests {
    private static func connection(_ port: Int) throws -> TableElement {
        .connection(
            try Lab.tuple("198.18.1.2:\(port)", "198.18.2.6:443"), host: try Lab.endpoint("198.18.2.7:8443"))
    }

    private static var renewal: TableChange {
        var change = TableChange()
        change.renewsEntrances = true
        return change
    }

    @Test func `a table is whole whatever happens to elements and to other tables`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            #expect(try table.condition() == .whole)
            try table.apply(TableChange(adding: [try Self.connection(1)] + Lab.everyEntrance()))
            #expect(try table.condition() == .whole)
            try Lab.nft("add table inet other; add chain inet other any; delete table inet other")
            #expect(try table.condition() == .whole)
            try Lab.nft("flush map inet nfqmigd connection4")
            #expect(try table.condition() == .whole)
            try table.apply(TableChange(remove: try Lab.everyEntrance()))
            #expect(try table.condition() == .whole)
            // Its next owner does not know which rules of base chains were needed, and takes them as they are.
            let next = try NetfilterTable(Lab.options)
            #expect(try next.establish() == .adopted)
            #expect(try next.condition() == .whole)
            try next.apply(Self.renewal)
            // Not even which chains are there: those of its own that nothing calls for it leaves alone.
            #expect(try Lab.mapsOfNAT() == ["connection4"])
            #expect(try next.condition() == .whole)
        }
    }

    @Test(arguments: ["prerouting_raw", "postrouting", "prerouting_nat"])
    func `missing rules of a base chain are noticed and come back`(chain: String) throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            try table.apply(TableChange(adding: [try Self.connection(1)] + Lab.everyEntrance()))
            let before = try Lab.withoutElements(Lab.listing())
            try Lab.nft("flush chain inet nfqmigd \(chain)")
            #expect(try Lab.withoutElements(Lab.listing()) != before)
            #expect(try table.condition() == .entrancesChanged)
            // Also when a transaction of our own has come since.
            try table.apply(TableChange(adding: [.guarded(try Lab.tuple("198.18.1.2:1", "198.18.2.6:2"))]))
            try table.apply(Self.renewal)
            #expect(try Lab.withoutElements(Lab.listing()) == before)
            #expect(try table.condition() == .whole)
        }
    }

    @Test func `a change brings back the rules that it relies on`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            try table.apply(TableChange(adding: [try Self.connection(1)]))
            try Lab.nft("flush chain inet nfqmigd prerouting_nat")
            try table.apply(TableChange(adding: [try Self.connection(2)]))
            #expect(try Lab.mapsOfNAT() == ["connection4"])
            let doors = try Lab.everyEntrance()
            try table.apply(TableChange(adding: [doors[0]]))
            try Lab.nft("flush chain inet nfqmigd prerouting_raw")
            try table.apply(TableChange(adding: [.involved(try Lab.endpoint("198.18.2.9:1").address)]))
            #expect(try Lab.rules(of: .preroutingRaw).count == 1)
        }
    }

    @Test(arguments: [
        "delete table inet nfqmigd", "flush ruleset", "flush chain inet nfqmigd involved4", "flush table inet nfqmigd",
    ])
    func `a table that is lost is made anew with what belongs into it`(damage: String) throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            let elements = [try Self.connection(1)] + (try Lab.everyEntrance())
            try table.apply(TableChange(adding: elements))
            // In a new table all chains stand in their order, not in that in which they were needed.
            func lines() throws -> [Substring] { try Lab.listing().split(separator: "\n").sorted() }
            let before = try lines()
            try Lab.nft(damage)
            #expect(try table.condition() == .lost)
            _ = try table.establish(carrying: elements.map { .init(element: $0) }, anew: true)
            let after = try lines()
            #expect(after == before)
            #expect(try table.condition() == .whole)
        }
    }

    @Test func `an older state of the table in its place is not taken for it`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            let saved = Lab.withoutQueue(try Lab.listing())
            let elements = [try Self.connection(1)]
            try table.apply(TableChange(adding: elements))
            try Lab.nft("flush ruleset\n" + saved)
            #expect(try Lab.listing().contains(Ruleset(Lab.options).comment))
            #expect(try table.condition() == .lost)
            _ = try table.establish(carrying: elements.map { .init(element: $0) }, anew: true)
            #expect(try Lab.mapsOfNAT() == ["connection4"])
            #expect(try table.condition() == .whole)
        }
    }
}
