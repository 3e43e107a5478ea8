// SPDX-License-Identifier: GPL-3.0-or-later

/// The packets of one queue that wait for the control plane: their numbers and marks, at most so many. Takes memory in
/// `init` only.
@safe
struct HeldPackets: ~Copyable {
    private struct Entry {
        let number: UInt32
        let mark: UInt32
    }

    private let entries: UnsafeMutablePointer<Entry>
    private let capacity: Int
    private var count = 0

    init(capacity: Int) {
        self.capacity = max(0, capacity)
        unsafe entries = .allocate(capacity: max(1, capacity))
    }

    deinit { unsafe entries.deallocate() }

    /// False when no more may wait.
    mutating func insert(_ packet: QueuedPacket) -> Bool {
        guard count < capacity else { return false }
        unsafe (entries + count).initialize(to: Entry(number: packet.number, mark: packet.metadata.mark))
        count += 1
        return true
    }

    /// The mark of the packet with this number, which is no longer held; nil when it was not.
    mutating func remove(_ number: UInt32) -> UInt32? {
        for index in 0..<count where unsafe entries[index].number == number {
            let mark = unsafe entries[index].mark
            count -= 1
            unsafe entries[index] = entries[count]
            return mark
        }
        return nil
    }
}
