// SPDX-License-Identifier: GPL-3.0-or-later

import Testing
import Wire

@Suite struct ChecksumTests {
    @Test(arguments: 0..<400)
    func `the sum in lanes is the sum in words`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        let count = Int.random(in: 0...2000, using: &random)
        // All ones make the most carries.
        let octets = seed % 3 == 0 ? Array(repeating: 0xff, count: count) : random.octets(count)
        let start = Int.random(in: 0...count, using: &random)
        var sum = InternetChecksum()
        sum.add(octets.span, start..<count)
        #expect(sum.checksum == referenceChecksum(Array(octets[start...])))
    }

    @Test func `a sum over the largest packet of ones does not overflow`() {
        let octets = [UInt8](repeating: 0xff, count: 65535)
        var sum = InternetChecksum()
        for _ in 0..<3 { sum.add(octets.span, 0..<65534) }
        #expect(sum.checksum == 0)
        sum = InternetChecksum()
        sum.add(octets.span, 0..<65535)
        #expect(sum.checksum == referenceChecksum(octets))
    }

    @Test func `the example of RFC 1071 section 3`() {
        let octets: [UInt8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]
        var sum = InternetChecksum()
        sum.add(octets.span, 0..<8)
        #expect(sum.checksum == ~0xddf2)
    }

    @Test func `the example of RFC 1624 section 4 comes out as 0x0000, not 0xFFFF`() {
        var delta = ChecksumDelta()
        delta.replace(0x5555 as UInt16, by: 0x3285)
        #expect(delta.applied(to: 0xdd2f) == 0x0000)
    }

    @Test(arguments: 0..<400)
    func `a change in place is a sum from scratch`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        // A first word that stays and is not zero, as any header has.
        var words: [UInt16] = [0x4500] + (0..<9).map { _ in UInt16(truncatingIfNeeded: random.next()) }
        let corners: [UInt16] = [0x0000, 0x0001, 0x7fff, 0x8000, 0xfffe, 0xffff]
        for index in 1..<10 where Bool.random(using: &random) { words[index] = corners[Int(random.next() % 6)] }
        if seed % 2 == 0 {
            // Make the sum from scratch hit the corner itself.
            words[9] = 0
            words[9] = seed % 4 == 0 ? reference(words) : ~(0xffff &- reference(words))
        }
        let before = reference(words)
        var delta = ChecksumDelta()
        func corner() -> UInt16 {
            Bool.random(using: &random) ? corners[Int(random.next() % 6)] : UInt16(truncatingIfNeeded: random.next())
        }
        let old = words
        for index in 1..<8 { words[index] = corner() }
        delta.replace(old[1], by: words[1])
        delta.replace(UInt32(old[2]) << 16 | UInt32(old[3]), by: UInt32(words[2]) << 16 | UInt32(words[3]))
        delta.replace(
            old[4..<8].reduce(0) { $0 << 16 | UInt64($1) }, by: words[4..<8].reduce(0) { $0 << 16 | UInt64($1) })
        #expect(delta.applied(to: before) == reference(words))
    }

    private func reference(_ words: [UInt16]) -> UInt16 { referenceChecksum(words.flatMap { octetsOf($0) }) }

    @Test func `every field under every change of a word agrees with a sum from scratch`() {
        // A word that stays, one that changes: all fields come up for the six corner words.
        let corners: [UInt16] = [0x0000, 0x0001, 0x7fff, 0x8000, 0xfffe, 0xffff]
        for kept in UInt16(1)...0xffff {
            for (old, new) in zip(corners + corners, corners.reversed() + corners[1...]) {
                var delta = ChecksumDelta()
                delta.replace(old, by: new)
                var before = InternetChecksum()
                before.add(kept)
                before.add(old)
                var after = InternetChecksum()
                after.add(kept)
                after.add(new)
                if delta.applied(to: before.checksum) != after.checksum {
                    Issue.record("kept \(kept), \(old) to \(new)")
                    return
                }
            }
        }
    }
}
