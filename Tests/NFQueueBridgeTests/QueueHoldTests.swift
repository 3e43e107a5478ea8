// SPDX-License-Identifier: GPL-3.0-or-later

import NFQueueBridge
import Testing

@Suite(.serialized, .enabled(if: QueueLab.isAvailable, Comment(rawValue: QueueLab.requirement)))
struct QueueHoldTests {
    private struct Result: Sendable {
        var early: [String] = []
        var arrived: [String] = []
        var waiting: [UInt64] = []
        var counters = QueueCounters()
        var held: [UInt32] = []
    }

    private static func receive(_ receiver: LabSocket) -> [String] {
        var all: [String] = []
        while let datagram = receiver.receive() { all.append(String(decoding: datagram, as: UTF8.self)) }
        return all
    }

    @Test func `a packet that is held waits for its release, and others pass it`() throws {
        let result = try QueueLab.inNamespace { () -> Result in
            var result = Result()
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            let (receiver, sender) = (try LabSocket.udp(host: 1, port: 4000), try LabSocket.udp(host: 2))
            for text in ["H1", "A1", "H2", "A2", "H3"] { sender.send(Array(text.utf8), to: 1, port: 4000) }
            QueueLab.eventually { log.held.withLock { $0.count } == 3 && queue.counters.packets == 2 }
            result.early = Self.receive(receiver)
            result.waiting.append(try QueueLab.kernelState(of: 0)?.waiting ?? 99)
            let held = log.held.withLock { $0 }
            // Out of order, one dropped, one twice, and one that nobody holds.
            try queue.release([
                (held[2], .accept), (held[0], .drop), (4711, .drop), (held[1], .accept), (held[1], .drop),
            ])
            QueueLab.eventually { queue.counters.packets == 5 }
            result.arrived = Self.receive(receiver)
            result.waiting.append(try QueueLab.kernelState(of: 0)?.waiting ?? 99)
            result.counters = queue.counters
            return result
        }
        #expect(result.early == ["A1", "A2"])
        #expect(result.arrived == ["H3", "H2"])
        #expect(result.waiting == [3, 0])
        #expect(result.counters.held == 3 && result.counters.accepted == 4 && result.counters.dropped == 1)
        #expect(result.counters.verdictErrors == 0)
    }

    @Test func `a packet that is to begin once more meets the rules as they are now`() throws {
        let result = try QueueLab.inNamespace { () -> Result in
            var result = Result()
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            let (receiver, sender) = (try LabSocket.udp(host: 1, port: 4000), try LabSocket.udp(host: 2))
            sender.send(Array("H1".utf8), to: 1, port: 4000)
            for round in 1...3 {
                QueueLab.eventually { log.held.withLock { $0.count } == round }
                let last = log.held.withLock { $0.last } ?? 0
                try queue.release([(last, round < 3 ? .repeat : .accept)])
            }
            QueueLab.eventually { queue.counters.packets == 3 }
            result.arrived = Self.receive(receiver)
            result.held = log.held.withLock { $0 }
            result.counters = queue.counters
            return result
        }
        // The kernel gives it a new number each time.
        #expect(Set(result.held).count == 3)
        #expect(result.arrived == ["H1"])
        #expect(result.counters.verdictErrors == 0)
    }

    @Test func `no more than the configured number waits, and a queue that ends leaves nothing waiting`() throws {
        let result = try QueueLab.inNamespace { () -> Result in
            var result = Result()
            let log = HandlerLog()
            var options = QueueOptions()
            options.maximumHeld = 2
            let queue = try startQueue(0, log, options: options)
            try QueueLab.divertAll()
            let (receiver, sender) = (try LabSocket.udp(host: 1, port: 4000), try LabSocket.udp(host: 2))
            for text in ["H1", "H2", "H3"] { sender.send(Array(text.utf8), to: 1, port: 4000) }
            QueueLab.eventually { queue.counters.dropped == 1 }
            result.counters = queue.counters
            result.waiting.append(try QueueLab.kernelState(of: 0)?.waiting ?? 99)
            queue.stop()
            #expect(throws: MailboxError.stopped) { try queue.release([(1, .accept)]) }
            result.arrived = Self.receive(receiver)
            let next = try startQueue(0, log)
            result.waiting.append(try QueueLab.kernelState(of: 0)?.waiting ?? 99)
            next.stop()
            return result
        }
        #expect(result.counters.held == 2 && result.counters.dropped == 1)
        #expect(result.waiting == [2, 0])
        #expect(result.arrived.isEmpty)
    }
}
