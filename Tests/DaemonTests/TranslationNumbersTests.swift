// SPDX-License-Identifier: GPL-3.0-or-later

import Daemon
import Rewriter
import Ruleset
import Testing
import Wire

@Suite struct TranslationNumbersTests {
    private func translation(_ text: String, _ clientPort: UInt16 = 0) throws -> Translation {
        Translation(endpoint: try #require(Endpoint(text)), clientPort: clientPort)
    }

    @Test func `each translation has one number, and what is gone leaves its number to others`() throws {
        var numbers = TranslationNumbers(limit: 3)
        let all = try ["192.0.2.1:1", "192.0.2.1:2", "[2001:db8::1]:1"].map { try translation($0) }
        #expect(try numbers.number(all) == all)
        #expect(try numbers.number(all) == [])
        #expect(Set(numbers.marks.values) == [1, 2, 3])
        let other = try translation("192.0.2.1:1", 1023)
        #expect(throws: TranslationsExhausted.self) { try numbers.number([other]) }
        #expect(Set(numbers.marks.keys) == Set(all))
        numbers.forget([all[1]])
        #expect(try numbers.number([other]) == [other])
        #expect(numbers.marks[other] == 2 | MarkLayout.changesClientPort)
    }

    @Test func `an attempt that finds too few numbers takes none`() throws {
        var numbers = TranslationNumbers(limit: 2)
        let three = try ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"].map { try translation($0) }
        #expect(throws: TranslationsExhausted.self) { try numbers.number(three) }
        #expect(numbers.marks.isEmpty)
        #expect(try numbers.number(three.prefix(2)).count == 2)
    }

    @Test func `a daemon that starts anew keeps the numbers that the kernel has for what it needs`() throws {
        var before = TranslationNumbers()
        let needed = try [translation("192.0.2.1:1", 700), translation("[2001:db8::1]:1"), translation("192.0.2.9:9")]
        let unneeded = try translation("192.0.2.2:2")
        _ = try before.number([unneeded] + needed)
        var elements = before.marks.keys.flatMap { before.elements(of: $0) }
        // One half of an endpoint says nothing.
        elements.removeAll { $0 == .endpointPort(number: 4, 9, .ipv4) }
        var after = TranslationNumbers()
        after.adopt(elements, for: Set(needed))
        #expect(after.marks == before.marks.filter { needed.prefix(2).contains($0.key) })
        // The kernel still writes something else, or one half of it, for the numbers 1 and 4.
        #expect(try after.number([unneeded, needed[2]]).count == 2)
        #expect(Set(after.marks.values.map { $0 & MarkLayout.translation }) == [2, 3, 5, 6])
    }

    @Test func `numbers that the kernel has for something else are passed over, up to the limit`() throws {
        var numbers = TranslationNumbers(limit: 3)
        let stale = try #require(IPAddress("192.0.2.1"))
        numbers.adopt([.endpointAddress(number: 1, stale), .endpointAddress(number: 3, stale)], for: [])
        let new = try translation("192.0.2.2:2")
        _ = try numbers.number([new])
        #expect(numbers.marks[new] == 2)
        #expect(throws: TranslationsExhausted.self) { try numbers.number([try translation("192.0.2.3:3")]) }
    }
}
