// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import Ruleset
import Testing

struct RulesetTextTests {
    private let options = RulesetOptions(mark: 0x6e60_0000, firstQueue: 0, queueCount: 2)

    /// Lines that say something: without comments (but not the table's own), blanks and indentation.
    private func statements(_ text: String) -> [String] {
        text.split(separator: "\n").map { $0.trimmingCharacters(in: .whitespaces) }
            .filter { !$0.isEmpty && !$0.hasPrefix("#") }
    }

    @Test func `the annotated ruleset is the generated one`() throws {
        let root = URL(fileURLWithPath: #filePath).resolvingSymlinksInPath()
            .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        let annotated = try String(contentsOf: root.appendingPathComponent("nft/nfqmigd.nft"), encoding: .utf8)
        #expect(statements(annotated) == statements(Ruleset(options).text()))
    }

    @Test func `queues are a range or one number`() {
        func queues(_ first: UInt16, _ count: UInt16) -> Substring? {
            let text = Ruleset(RulesetOptions(mark: 0x10_0000, firstQueue: first, queueCount: count)).text()
            return text.split(separator: "\n").first { $0.contains("queue num") }?.drop { $0 == "\t" }
        }
        #expect(queues(0, 2) == "queue num 0-1")
        #expect(queues(7, 1) == "queue num 7")
        #expect(queues(65_535, 1) == "queue num 65535")
        #expect(queues(65_532, 4) == "queue num 65532-65535")
    }

    @Test func `every option changes the comment and only equal tables share it`() {
        let variants = [
            options,
            RulesetOptions(mark: 0x20_0000, firstQueue: 0, queueCount: 2),
            RulesetOptions(mark: 0x6e60_0000, firstQueue: 1, queueCount: 2),
            RulesetOptions(mark: 0x6e60_0000, firstQueue: 0, queueCount: 3),
            RulesetOptions(mark: 0x6e60_0000, firstQueue: 0, queueCount: 2, carries: false),
            RulesetOptions(mark: 0x6e60_0000, firstQueue: 0, queueCount: 2, tableName: "other"),
        ]
        #expect(Set(variants.map { Ruleset($0).comment }).count == variants.count)
        #expect(Ruleset(options).comment == Ruleset(options).comment)
        // `nft` prints it between quotes, and the kernel keeps 128 octets of it at most.
        #expect(Ruleset(options).comment.allSatisfy { $0.isLetter || $0.isNumber || $0 == " " })
        #expect(Ruleset(options).text().contains("\tcomment \"\(Ruleset(options).comment)\"\n"))
    }

    @Test func `chains and sets that rules name exist`() {
        let ruleset = Ruleset(options)
        let sets = Set(ruleset.sets.map(\.name))
        let chains = Set(ruleset.chains.map(\.name))
        var used: Set<SetName> = []
        for statement in ruleset.chains.flatMap(\.rules).joined() {
            switch statement {
            case .isIn(_, let set), .setField(_, _, let set), .update(let set, _), .translateDestination(_, let set),
                .translateSource(_, let set), .remember(let set, _), .forget(let set, _), .recall(_, let set):
                used.insert(set)
            case .goTo(let chain): #expect(chains.contains(chain))
            default: break
            }
        }
        #expect(used == sets)
        #expect(chains == Set(ChainName.allCases))
        // Without carrying there is neither a map for it nor a rule.
        let other = Ruleset(RulesetOptions(mark: 0x6e60_0000, firstQueue: 0, queueCount: 2, carries: false))
        #expect(sets.subtracting(other.sets.map(\.name)) == Set(SetName.ofMarks))
        #expect(!other.text().contains("carried"))
    }
}
