// SPDX-License-Identifier: GPL-3.0-or-later

/// A TCP sequence or acknowledgement number: arithmetic modulo 2³² (RFC 9293 section 3.4).
///
/// Deliberately not `Comparable`: the order wraps and so is not transitive; `sort` and `max` must not compile.
@frozen
public struct SequenceNumber: Hashable, Sendable {
    public var rawValue: UInt32

    @inlinable
    public init(_ rawValue: UInt32) { self.rawValue = rawValue }

    /// This number plus `count`, modulo 2³². `count` may be negative.
    @inlinable
    public func advanced(by count: Int) -> SequenceNumber {
        SequenceNumber(rawValue &+ UInt32(truncatingIfNeeded: count))
    }

    /// How far `other` lies ahead (positive) or behind (negative): the shorter way round the circle.
    @inlinable
    public func distance(to other: SequenceNumber) -> Int {
        Int(Int32(bitPattern: other.rawValue &- rawValue))
    }

    /// Whether this number comes before `other` on the shorter way round the circle.
    @inlinable
    public func precedes(_ other: SequenceNumber) -> Bool { distance(to: other) > 0 }

    /// Whether this number lies in the `size` numbers from `start` on. No number lies in a window of size 0.
    @inlinable
    public func isInWindow(startingAt start: SequenceNumber, size: UInt32) -> Bool {
        rawValue &- start.rawValue < size
    }
}

extension SequenceNumber: CustomStringConvertible {
    public var description: String { rawValue.description }
}
