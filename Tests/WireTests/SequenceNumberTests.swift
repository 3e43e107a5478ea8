// SPDX-License-Identifier: GPL-3.0-or-later

import Testing
import Wire

@Suite struct SequenceNumberTests {
    @Test(arguments: 0..<400)
    func `distance and advance undo each other, everywhere on the circle`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        let corners: [UInt32] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_ffff]
        func number() -> SequenceNumber {
            let raw = UInt32(truncatingIfNeeded: random.next())
            return SequenceNumber(Bool.random(using: &random) ? corners[Int(raw % 6)] : raw)
        }
        let (one, other) = (number(), number())
        let distance = one.distance(to: other)
        #expect(one.advanced(by: distance) == other)
        #expect((-(1 << 31)..<(1 << 31)).contains(distance))
        if distance != -(1 << 31) { #expect(other.distance(to: one) == -distance) }
        #expect(!(one.precedes(other) && other.precedes(one)))
        #expect(!one.precedes(one))
        #expect(one.precedes(one.advanced(by: 1)))
        #expect(one.advanced(by: -1).precedes(one))
        #expect(one.precedes(one.advanced(by: 0x7fff_ffff)))
        #expect(!one.precedes(one.advanced(by: 0x8000_0000)))
        let size = UInt32(truncatingIfNeeded: random.next()) >> UInt32(random.next() % 32)
        #expect(other.isInWindow(startingAt: one, size: size) == (Int(other.rawValue &- one.rawValue) < Int(size)))
        #expect(one.isInWindow(startingAt: one, size: size) == (size > 0))
        #expect(!one.advanced(by: Int(size)).isInWindow(startingAt: one, size: size))
        if size > 0 { #expect(one.advanced(by: Int(size) - 1).isInWindow(startingAt: one, size: size)) }
    }
}
