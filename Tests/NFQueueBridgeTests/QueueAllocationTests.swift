// SPDX-License-Identifier: GPL-3.0-or-later

import AllocationCounter
import Foundation
import NFQueueBridge
import Testing

@Suite(.serialized, .enabled(if: allocation_count_of_this_thread() >= 0, "a sanitizer has malloc for itself"))
struct QueueAllocationTests {
    private final class Thing {}

    @Test func `the counter sees what Swift allocates on this thread`() {
        let before = allocation_count_of_this_thread()
        var things: [Thing] = []
        things.reserveCapacity(100)
        for _ in 0..<100 { things.append(Thing()) }
        let seen = allocation_count_of_this_thread() - before
        withExtendedLifetime(things) {}
        // One for the array and one for each of the objects.
        #expect(seen >= 101)
        #expect(seen < 200)
    }

    @Test(.enabled(if: QueueLab.isAvailable, Comment(rawValue: QueueLab.requirement)))
    func `a queue's thread allocates nothing for fifty thousand packets, half of them rewritten`() throws {
        struct Result: Sendable {
            var packets: UInt64 = 0
            var rewritten: UInt64 = 0
            var allocated = 0
            var atStart = 0
        }
        let result = try QueueLab.inNamespace { () -> Result in
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            let kinds = [Array("A?".utf8), Array("R?".utf8)]
            var sent: UInt64 = 0
            func send(until count: UInt64) {
                while sent < count {
                    sender.send(kinds[Int(sent % 2)], to: 1, port: 4000)
                    sent += 1
                    // Not more than the queue holds.
                    while sent - queue.counters.packets > 2000 { usleep(100) }
                }
                QueueLab.eventually { queue.counters.packets >= count }
            }
            send(until: 1000)
            var result = Result()
            result.atStart = log.allocationCount
            let before = queue.counters
            send(until: 51_000)
            result.packets = queue.counters.packets - before.packets
            result.rewritten = queue.counters.rewritten - before.rewritten
            result.allocated = log.allocationCount - result.atStart
            withExtendedLifetime(receiver) {}
            return result
        }
        #expect(result.packets == 50_000)
        #expect(result.rewritten == 25_000)
        #expect(result.atStart != 0)
        #expect(result.allocated == 0)
    }
}
