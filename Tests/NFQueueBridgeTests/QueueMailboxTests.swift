// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import NFQueueBridge
import Synchronization
import Testing

@Suite(.serialized, .enabled(if: QueueLab.isAvailable, Comment(rawValue: QueueLab.requirement)))
struct QueueMailboxTests {
    private final class FailureCount: Sendable {
        let count = Atomic<Int>(0)
    }

    @Test func `each packet is decided with what was posted before it was sent`() throws {
        let arrived = try QueueLab.inNamespace { () -> [String] in
            let queue = try startQueue(0, HandlerLog())
            try QueueLab.divertAll()
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            var arrived: [String] = []
            for round in 0..<200 {
                try queue.post([0, 65 + round % 26])
                sender.send(Array("R?".utf8), to: 1, port: 4000)
                if let datagram = receiver.receive() { arrived.append(String(decoding: datagram, as: UTF8.self)) }
            }
            return arrived
        }
        let expected = (0..<200).map { round in String(decoding: [82, UInt8(65 + round % 26)], as: UTF8.self) }
        #expect(arrived == expected)
    }

    @Test func `posts of one thread are taken in order, with traffic and other posters beside`() throws {
        let messages = try QueueLab.inNamespace { () -> [Int] in
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            let sender = try LabSocket.udp(host: 2)
            let group = DispatchGroup()
            let failures = FailureCount()
            for poster in 0..<4 {
                group.enter()
                Thread.detachNewThread {
                    for round in 0..<250 {
                        let batch = [poster * 1000 + 2 * round, poster * 1000 + 2 * round + 1]
                        do {
                            if round % 2 == 0 { try queue.post(batch) } else { try queue.postWithoutWaiting(batch) }
                        } catch {
                            failures.count.add(1, ordering: .relaxed)
                        }
                    }
                    group.leave()
                }
            }
            while group.wait(timeout: .now()) == .timedOut { sender.send(Array("A?".utf8), to: 1, port: 4000) }
            if failures.count.load(ordering: .relaxed) > 0 { throw QueueLab.Failure(description: "a post failed") }
            try queue.post([-1])
            return log.messages.withLock { $0 }
        }
        #expect(messages.count == 2001)
        #expect(messages.last == -1)
        for poster in 0..<4 {
            let own = messages.filter { $0 >= 0 && $0 / 1000 == poster }
            #expect(own == Array(poster * 1000..<poster * 1000 + 500))
        }
    }

    @Test func `a change that is to be made in any case is taken by a thread that is late`() throws {
        let messages = try QueueLab.inNamespace { () -> [Int] in
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            try LabSocket.udp(host: 2).send(Array("L?".utf8), to: 1, port: 4000)
            usleep(200_000)
            queue.postInAnyCase([1])
            try queue.post([2])
            return log.messages.withLock { $0 }
        }
        #expect(messages == [1, 2])
    }

    @Test func `a change that is not taken in time is withdrawn`() throws {
        let (error, messages) = try QueueLab.inNamespace { () -> (MailboxError?, [Int]) in
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            try LabSocket.udp(host: 2).send(Array("L?".utf8), to: 1, port: 4000)
            usleep(200_000)
            var thrown: MailboxError?
            do throws(MailboxError) { try queue.post([1]) } catch { thrown = error }
            try queue.post([2])
            return (thrown, log.messages.withLock { $0 })
        }
        #expect(error == .unanswered(seconds: 2))
        #expect(messages == [2])
    }

    @Test func `a stopped thread refuses changes at once`() throws {
        let error = try QueueLab.inNamespace { () -> MailboxError? in
            let queue = try startQueue(0, HandlerLog())
            queue.stop()
            do throws(MailboxError) { try queue.post([1]) } catch { return error }
            return nil
        }
        #expect(error == .stopped)
    }
}
