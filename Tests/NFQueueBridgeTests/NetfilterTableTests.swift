// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import NFQueueBridge
import Ruleset
import Testing
import Wire

private typealias Lab = NetfilterTableLab

@Suite(.enabled(if: NetfilterTableLab.isAvailable, Comment(rawValue: NetfilterTableLab.requirement)))
struct NetfilterTableTests {
    @Test func `the table made by netlink lists as its text loaded by nft`() throws {
        let text = Ruleset(Lab.options).text()
        let open = try Lab.everyEntrance() + Lab.everyKind().filter { SetName.ofNAT.contains($0.set) }
        let fromText = try Lab.inNamespace {
            try Lab.nft(Lab.withoutQueue(text))
            return try Lab.listing()
        }
        let fromNetlink = try Lab.inNamespace {
            let additions = open.map { TableChange.Addition(element: $0) }
            #expect(try NetfilterTable(Lab.options).establish(carrying: additions) == .created)
            return Lab.withoutElements(Lab.withoutQueue(try Lab.listing()))
        }
        #expect(fromNetlink == fromText)
        // Not only equal to each other: nft prints what we print.
        #expect(fromText == Lab.withoutQueue(text))
    }

    @Test func `a rule looks into a set at an entrance while the set has an element`() throws {
        let ruleset = Ruleset(Lab.options)
        // Each door by itself, then all, and the other way round; the second half by another object, as after a restart.
        let doors = try Lab.everyEntrance()
        let changes =
            doors.flatMap { [TableChange(adding: [$0]), TableChange(remove: [$0])] }
            + doors.map { TableChange(adding: [$0]) } + doors.map { TableChange(remove: [$0]) }
        try Lab.inNamespace {
            var table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            let base = try Lab.shell("nft list table inet nfqmigd").contains("@involved4 goto")
            #expect(!base)
            for (index, change) in changes.enumerated() {
                if index == changes.count / 2 + 2 {
                    table = try NetfilterTable(Lab.options)
                    #expect(try table.establish() == .adopted)
                }
                try table.apply(change)
                let open = Entrances(try table.elements()).open
                for chain in Ruleset.chains(open: open) {
                    let all = ruleset.chains.first { $0.name == chain.name }
                    let listed = try Lab.rules(of: chain.name)
                    #expect(listed.count == chain.rules.count, "\(index): \(listed)")
                    #expect(all?.rules.filter(chain.rules.contains) == chain.rules)
                    for set in open.union(SetName.entrances) {
                        let leads = listed.contains { $0.contains("@\(set) goto") }
                        let isHere = chain.rules.joined().contains {
                            if case .isIn(_, set) = $0 { true } else { false }
                        }
                        #expect(leads == isHere)
                    }
                }
            }
            // What fails leaves the doors as they are, and is not believed to have been made.
            let involved = doors[0]
            let clash = try Lab.everyKind().filter { if case .connection = $0 { true } else { false } }
            try table.apply(TableChange(adding: [clash[0]]))
            guard case .connection(let tuple, _) = clash[0] else { return }
            let other = TableElement.connection(tuple, host: try Lab.endpoint("198.18.2.9:1"))
            #expect(throws: TableError.self) { try table.apply(TableChange(adding: [involved, other])) }
            #expect(try !Lab.shell("nft list chain inet nfqmigd prerouting_raw").contains("goto"))
            try table.apply(TableChange(adding: [involved]))
            #expect(try Lab.shell("nft list chain inet nfqmigd prerouting_raw").contains("goto"))
        }
    }

    @Test func `the nat chains come with the first element of a map of theirs and its rule with it`() throws {
        let elements = try Lab.everyKind().filter { SetName.ofNAT.contains($0.set) }
        #expect(Set(elements.map(\.set)) == SetName.ofNAT)
        let chains: [ChainName] = [.preroutingNAT, .postroutingNAT]
        try Lab.inNamespace {
            var table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            #expect(try Lab.mapsOfNAT().isEmpty)
            #expect(try !Lab.listing().contains("type nat hook"))
            var expected: Set<String> = []
            for element in elements.shuffled() {
                try table.apply(TableChange(adding: [element]))
                expected.insert("\(element.set)")
                #expect(try Lab.mapsOfNAT() == expected)
            }
            // In the order of the table's text, whatever came first.
            for name in chains {
                let all = Ruleset(Lab.options).chains.first { $0.name == name }
                #expect(try Lab.rules(of: name).count == all?.rules.count)
                let order = Lab.rules(of: name, in: Ruleset(Lab.options).text())
                #expect(try Lab.rules(of: name) == order)
            }
            // Which keys a map has nobody counts.
            let (last, rest) = (elements[0], Array(elements.dropFirst()))
            try table.apply(TableChange(remove: rest))
            #expect(try Lab.mapsOfNAT() == expected)
            // A new owner leaves the rules alone, and looks when it changes something.
            table = try NetfilterTable(Lab.options)
            #expect(try table.establish() == .adopted)
            #expect(try Lab.mapsOfNAT() == expected)
            try table.apply(TableChange(adding: [try Lab.everyEntrance()[0]]))
            #expect(try Lab.mapsOfNAT() == ["\(last.set)"])
            // What another program has taken away comes back with a change that makes certain.
            try Lab.nft("flush chain inet nfqmigd prerouting_nat; flush chain inet nfqmigd postrouting_nat")
            table = try NetfilterTable(Lab.options)
            #expect(try table.establish() == .adopted)
            var change = TableChange()
            change.renewsEntrances = true
            try table.apply(change)
            #expect(try Lab.mapsOfNAT() == ["\(last.set)"])
        }
        // A table that is made with elements has their rules from the first moment.
        try Lab.inNamespace {
            _ = try NetfilterTable(Lab.options).establish(carrying: elements.map { .init(element: $0) })
            #expect(try Lab.mapsOfNAT() == Set(elements.map { "\($0.set)" }))
        }
        try Lab.inNamespace {
            _ = try NetfilterTable(Lab.options).establish(carrying: [.init(element: elements[0])])
            #expect(try Lab.mapsOfNAT() == ["\(elements[0].set)"])
        }
    }

    @Test func `rules at an entrance that another program has taken away come back`() throws {
        try Lab.inNamespace {
            let involved = try Lab.everyEntrance()[0]
            let other = TableElement.involved(try Lab.endpoint("198.18.2.9:1").address)
            func stands() throws -> Bool {
                try Lab.shell("nft list chain inet nfqmigd prerouting_raw").contains("@involved4 goto")
            }
            var table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            try table.apply(TableChange(adding: [involved]))
            // Noticed by the gap that it leaves.
            try Lab.nft("flush chain inet nfqmigd prerouting_raw")
            try table.apply(TableChange(adding: [.guarded(try Lab.tuple("198.18.1.2:1", "198.18.2.6:2"))]))
            try table.apply(TableChange(adding: [other]))
            #expect(try stands())
            // By a new owner, with its first change of these sets, and when it wants to be certain.
            for change in [TableChange(remove: [other]), TableChange()] {
                try Lab.nft("flush chain inet nfqmigd prerouting_raw")
                table = try NetfilterTable(Lab.options)
                #expect(try table.establish() == .adopted)
                var change = change
                change.renewsEntrances = change.remove.isEmpty
                try table.apply(change)
                #expect(try stands())
            }
        }
    }

    @Test(.enabled(if: NetfilterTableLab.hasNativeQueue, "this kernel lacks nft_queue"))
    func `nft accepts the text with its own queue statement`() throws {
        try Lab.inNamespace { _ = try Lab.shell("nft -c -f -", input: Ruleset(Lab.options).text()) }
    }

    @Test func `the queue statement is native where the kernel has it and else the xt target`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            #expect(table.queueStatement == nil)
            _ = try table.establish()
            #expect(table.queueStatement == (Lab.hasNativeQueue ? .native : .xtTarget))
            let chain = try Lab.shell("nft list chain inet nfqmigd enqueue 2>/dev/null")
            // iptables' translation of the target and nft's own word agree but for "num" and "to".
            #expect(chain.contains("queue num 0-1\n") || chain.contains("queue to 0-1\n"), "\(chain)")
            let again = try NetfilterTable(Lab.options)
            #expect(try again.establish() == .adopted)
            #expect(again.queueStatement == table.queueStatement)
        }
    }

    @Test func `adopting touches nothing`() throws {
        try Lab.inNamespace {
            let first = try NetfilterTable(Lab.options)
            _ = try first.establish()
            let elements = try Lab.everyKind()
            try first.apply(TableChange(adding: elements))
            let before = try Lab.shell("nft -a list table inet nfqmigd")
            let second = try NetfilterTable(Lab.options)
            let extra = TableElement.icmpHome(.v4(IPv4Address(rawValue: 1)))
            #expect(try second.establish(carrying: [.init(element: extra)]) == .adopted)
            #expect(try Lab.stable(Lab.shell("nft -a list table inet nfqmigd")) == Lab.stable(before))
            #expect(Set(try second.elements()) == Set(elements))
        }
    }

    @Test func `a table with other contents is replaced with what it is to carry`() throws {
        try Lab.inNamespace {
            let old = try NetfilterTable(RulesetOptions(mark: 0x70_0000, firstQueue: 0, queueCount: 2))
            _ = try old.establish()
            try old.apply(TableChange(adding: try Lab.everyKind()))
            let new = try NetfilterTable(Lab.options)
            let kept = TableElement.guarded(try Lab.tuple("198.18.1.2:1", "198.18.2.6:2"))
            guard case .replaced(let reason) = try new.establish(carrying: [.init(element: kept)]) else {
                Issue.record("not replaced")
                return
            }
            #expect(reason.contains(old.ruleset.comment) && reason.contains(new.ruleset.comment))
            #expect(try new.elements() == [kept])
            #expect(try new.establish() == .adopted)
        }
    }

    @Test func `a table of another program with our name is replaced`() throws {
        try Lab.inNamespace {
            try Lab.nft("table inet nfqmigd { set divert4 { type ipv4_addr; }; }")
            let table = try NetfilterTable(Lab.options)
            #expect(try table.exists)
            guard case .replaced = try table.establish() else {
                Issue.record("not replaced")
                return
            }
            #expect(try table.elements() == [])
        }
    }

    @Test func `other tables stay as they are`() throws {
        let foreign = """
            table ip nfqmigd {
            \tset divert4 {
            \t\ttype ipv4_addr
            \t\telements = { 198.18.0.1 }
            \t}
            }
            table inet other {
            \tchain input {
            \t\ttype filter hook input priority raw; policy accept;
            \t\ttcp dport 22 counter packets 0 bytes 0 accept
            \t}
            }

            """
        try Lab.inNamespace {
            try Lab.nft(foreign)
            let before = try Lab.shell("nft -a list ruleset")
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            let elements = try Lab.everyKind()
            try table.apply(TableChange(adding: elements))
            try table.apply(TableChange(remove: elements))
            #expect(try Lab.shell("nft -a list ruleset").hasPrefix(before))
            try table.remove()
            #expect(try Lab.shell("nft -a list ruleset") == before)
            #expect(try !table.exists)
            try table.remove()
        }
    }

    @Test func `every kind of element is added, read back and removed in both families`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            let elements = try Lab.everyKind()
            for (index, element) in elements.enumerated() {
                try table.apply(TableChange(adding: [element]))
                #expect(Set(try table.elements()) == Set(elements[...index]))
            }
            for (index, element) in elements.enumerated() {
                try table.apply(TableChange(remove: [element]))
                #expect(Set(try table.elements()) == Set(elements[(index + 1)...]))
            }
        }
    }

    @Test func `nft shows elements with their types`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            try table.apply(TableChange(adding: try Lab.everyKind()))
            func elements(_ name: String) throws -> String {
                let listing = try Lab.shell("nft list \(name)").split(separator: "\n")
                return listing.filter { $0.contains("elements = ") }.map { $0.drop { $0 == "\t" } }.joined()
            }
            #expect(
                try elements("map inet nfqmigd connection4")
                    == "elements = { 198.18.1.2 . 49152 . 198.18.2.6 . 443 : 198.18.2.7 . 8443 }")
            #expect(
                try elements("map inet nfqmigd client6")
                    == "elements = { 2001:db8:1::2 . 2001:db8:2::6 . 443 : 2001:db8:2::7 . 8443 }")
            #expect(
                try elements("set inet nfqmigd divert_client4") == "elements = { 198.18.1.2 . 198.18.2.6 . 443 }")
            #expect(
                try elements("map inet nfqmigd service6")
                    == "elements = { 2001:db8:2::6 . 443 : 2001:db8:2::7 . 8443 }")
            #expect(try elements("set inet nfqmigd divert_service4") == "elements = { 198.18.2.6 . 443 }")
            #expect(try elements("map inet nfqmigd endpoint_address4") == "elements = { 0x0003ffff : 198.18.2.7 }")
            #expect(try elements("map inet nfqmigd endpoint_port6") == "elements = { 0x0003ffff : 8443 }")
            #expect(try elements("set inet nfqmigd icmp_home6") == "elements = { 2001:db8:2::6 }")
            // With the set's time-out.
            #expect(try elements("set inet nfqmigd icmp_peer6").hasPrefix("elements = { 2001:db8:1::2"))
            #expect(
                try elements("set inet nfqmigd divert6")
                    == "elements = { 2001:db8:1::2 . 49152 . 2001:db8:2::6 . 443 }")
            #expect(
                try elements("set inet nfqmigd guard6") == "elements = { 2001:db8:2::6 . 443 . 2001:db8:1::2 . 49152 }")
            // As seen by a parser too.
            let document = try JSONSerialization.jsonObject(
                with: Data(try Lab.shell("nft -j list set inet nfqmigd icmp_home4").utf8))
            #expect("\(document)".contains("198.18.2.6"))
        }
    }

    @Test func `an element that nft adds is read`() throws {
        try Lab.inNamespace {
            let table = try NetfilterTable(Lab.options)
            _ = try table.establish()
            try Lab.nft("add element inet nfqmigd client4 { 198.18.1.2 . 198.18.2.6 . 443 : 198.18.2.7 . 8443 }")
            let home = try Lab.endpoint("198.18.2.6:443")
            let client = try Lab.endpoint("198.18.1.2:0").address
            #expect(try table.elements() == [.client(client, home: home, host: try Lab.endpoint("198.18.2.7:8443"))])
        }
    }
}

extension NetfilterTableLab {
    /// A listing without what changes by itself, and with elements in one order.
    static func stable(_ listing: String) -> [String] {
        listing.split(separator: "\n").flatMap { line -> [String] in
            guard line.contains("elements = ") || line.contains(" . ") else { return [String(line)] }
            let words = line.replacing("elements = {", with: "").replacing("}", with: "")
                .replacing(#/ expires [0-9a-z]+/#, with: "")
            return words.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }.sorted()
        }.sorted()
    }
}
