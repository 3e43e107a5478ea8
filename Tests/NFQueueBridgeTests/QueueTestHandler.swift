// SPDX-License-Identifier: GPL-3.0-or-later

import AllocationCounter
import Glibc
import NFQueueBridge
import Synchronization
import Wire

/// What a test handler has seen, for the test's thread.
final class HandlerLog: Sendable {
    let messages = Mutex<[Int]>([])
    let states = Mutex<[ChecksumState]>([])
    let held = Mutex<[UInt32]>([])
    /// Octets of the longest TCP packet.
    let longest = Atomic<Int>(0)
    let batchEnds = Atomic<Int>(0)
    let handlersMade = Atomic<Int>(0)
    let handlersDestroyed = Atomic<Int>(0)
    /// Allocations of the queue's thread, as its AllocationCounter slot; freed by nobody, since a thread may outlive us.
    nonisolated(unsafe) let allocations = UnsafeMutablePointer<Int>.allocate(capacity: 1)

    init() { allocations.initialize(to: 0) }

    var allocationCount: Int { allocation_counter_read(allocations) }
}

/// Gives TCP back rewritten, with a checksum of its own; otherwise decides by the first octet of a UDP datagram: D is dropped; R is rewritten, its second octet becoming the letter that
/// was last posted; M gets mark 7; H is held, its number noted; S keeps the thread for 20 ms, L for 3 s; anything else passes. What is no UDP is dropped.
struct TestHandler: VerdictHandler, ~Copyable {
    let log: HandlerLog
    private var letter = UInt8(ascii: "-")

    init(_ log: HandlerLog) {
        self.log = log
        allocation_counter_register(log.allocations)
        log.handlersMade.add(1, ordering: .relaxed)
    }

    deinit {
        allocation_counter_register(nil)
        log.handlersDestroyed.add(1, ordering: .relaxed)
    }

    mutating func verdict(for packet: inout MutableSpan<UInt8>, _ metadata: PacketMetadata) -> Verdict {
        if packet.count >= 40, packet[9] == 6 {
            complete(&packet, checksumAt: 36)
            log.longest.max(packet.count, ordering: .relaxed)
            return .acceptRewritten
        }
        guard packet.count >= 30, packet[0] == 0x45, packet[9] == 17, (packet[6] & 0x3f) | packet[7] == 0 else {
            return .drop
        }
        switch packet[28] {
        case UInt8(ascii: "D"): return .drop
        case UInt8(ascii: "R"):
            packet[29] = letter
            complete(&packet, checksumAt: 26)
            return .acceptRewritten
        case UInt8(ascii: "r"):
            // Changes the packet's octets without saying so: nothing of it may arrive.
            packet[29] = letter
            return .accept
        case UInt8(ascii: "H"):
            log.held.withLock { $0.append(metadata.number) }
            return .hold
        case UInt8(ascii: "M"): return .accept(mark: 7)
        case UInt8(ascii: "C"):
            log.states.withLock { $0.append(metadata.checksum) }
            return .accept
        case UInt8(ascii: "S"):
            usleep(20_000)
            return .accept
        case UInt8(ascii: "L"):
            sleep(3)
            return .accept
        default: return .accept
        }
    }

    /// Computes the transport checksum in full.
    private func complete(_ packet: inout MutableSpan<UInt8>, checksumAt place: Int) {
        packet[place] = 0
        packet[place + 1] = 0
        var sum = UInt32(Int(packet[9]) + packet.count - 20)
        for index in 12..<packet.count {
            sum &+= index & 1 == 0 ? UInt32(packet[index]) << 8 : UInt32(packet[index])
        }
        while sum >> 16 != 0 { sum = (sum & 0xffff) + sum >> 16 }
        let checksum = ~UInt16(truncatingIfNeeded: sum)
        packet[place] = UInt8(checksum >> 8)
        packet[place + 1] = UInt8(checksum & 0xff)
    }

    mutating func receive(_ message: Int) {
        letter = UInt8(truncatingIfNeeded: message)
        log.messages.withLock { $0.append(message) }
    }

    mutating func endOfBatch(at time: UInt64) { log.batchEnds.add(1, ordering: .relaxed) }
}

/// Starts a queue thread with a test handler.
func startQueue(
    _ queue: UInt16, _ log: HandlerLog, options: QueueOptions = QueueOptions()
) throws -> QueueThread<TestHandler> {
    try QueueThread<TestHandler>(queue: queue, options: options) { TestHandler(log) }
}
