// SPDX-License-Identifier: GPL-3.0-or-later

public import Synchronization

/// Carries values from one thread (a queue's) to one other (the control plane's), in order, without lock or allocation.
/// When it is full, the newest value is lost and counted: whoever waits for one must be able to ask again.
///
/// Values can be drained from `signal` on, not from `push`: a queue's thread signals when the verdicts of a batch have
/// gone, so that nobody acts on a packet while those before it are still on their way to conntrack.
///
/// `push` and `signal` belong to the producer's thread, `drain` to the consumer's. Unchecked: slots between `head` and
/// `tail` are the consumer's, the others the producer's, and the two indices' releases and acquires order the accesses.
@safe
public final class ObservationRing<Element: BitwiseCopyable & Sendable>: @unchecked Sendable {
    @usableFromInline let slots: UnsafeMutablePointer<Element>
    /// The number of slots less one; the number is a power of two.
    @usableFromInline let mask: UInt
    /// The producer's: values pushed so far, without the lost ones.
    @usableFromInline let pushed = Atomic<UInt>(0)
    /// Values that the consumer may drain: `pushed` when it was last woken.
    @usableFromInline let tail = Atomic<UInt>(0)
    /// Values drained so far.
    @usableFromInline let head = Atomic<UInt>(0)
    @usableFromInline let lost = Atomic<UInt64>(0)
    @usableFromInline let event: QueueEventDescriptor

    /// A ring for at least `capacity` values. Throws `NetlinkError` with operation `.makeEventDescriptor`.
    public init(capacity: Int) throws(NetlinkError) {
        event = try QueueEventDescriptor()
        var count = 2
        while count < capacity { count *= 2 }
        mask = UInt(count - 1)
        unsafe slots = .allocate(capacity: count)
    }

    deinit { unsafe slots.deallocate() }

    /// Becomes readable when there is something to drain; for poll(2) or epoll(7).
    public var eventFileDescriptor: Int32 { event.fileDescriptor }

    /// Values lost because the ring was full.
    public var overflows: UInt64 { lost.load(ordering: .relaxed) }

    /// Whether there is nothing to drain at this moment.
    public var isEmpty: Bool { head.load(ordering: .relaxed) == tail.load(ordering: .acquiring) }

    /// Adds a value, for the consumer to see after `signal`. False when the value is lost.
    @inlinable
    @discardableResult
    public func push(_ element: Element) -> Bool {
        let end = pushed.load(ordering: .relaxed)
        guard end &- head.load(ordering: .acquiring) <= mask else {
            lost.store(lost.load(ordering: .relaxed) &+ 1, ordering: .relaxed)
            return false
        }
        unsafe slots[Int(bitPattern: end & mask)] = element
        pushed.store(end &+ 1, ordering: .relaxed)
        return true
    }

    /// Lets the consumer have what was pushed since the last time, and wakes it; once per batch is enough.
    @inlinable
    public func signal() {
        let end = pushed.load(ordering: .relaxed)
        guard end != tail.load(ordering: .relaxed) else { return }
        tail.store(end, ordering: .releasing)
        event.signal()
    }

    /// Calls `body` for each value that is there, oldest first. What comes meanwhile makes the descriptor readable again.
    public func drain(_ body: (Element) -> Void) {
        event.clear()
        var start = head.load(ordering: .relaxed)
        let end = tail.load(ordering: .acquiring)
        while start != end {
            let element = unsafe slots[Int(bitPattern: start & mask)]
            start &+= 1
            head.store(start, ordering: .releasing)
            body(element)
        }
    }
}
