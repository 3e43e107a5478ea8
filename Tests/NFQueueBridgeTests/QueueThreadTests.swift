// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import NFQueueBridge
import Synchronization
import Testing
import Wire

@Suite(.serialized, .enabled(if: QueueLab.isAvailable, Comment(rawValue: QueueLab.requirement)))
struct QueueThreadTests {
    @Test func `each packet gets the verdict that its handler gave`() throws {
        struct Result: Sendable {
            var arrived: [String: Int] = [:]
            var counters: [QueueCounters] = []
            var kernel: [QueueLab.KernelState?] = []
        }
        let result = try QueueLab.inNamespace { () -> Result in
            let log = HandlerLog()
            let queues = [try startQueue(0, log), try startQueue(1, log)]
            try QueueLab.divertAll(to: 0...1)
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            for queue in queues { try queue.post([Int(UInt8(ascii: "x"))]) }
            // The queue is chosen by addresses: many of them reach both.
            let senders = try (2..<22).map { try LabSocket.udp(host: $0) }
            for round in 0..<30 {
                for sender in senders {
                    sender.send(Array(["A?", "R?", "r?", "D?"][round % 4].utf8), to: 1, port: 4000)
                }
            }
            var result = Result()
            while let datagram = receiver.receive() {
                result.arrived[String(decoding: datagram, as: UTF8.self), default: 0] += 1
            }
            result.kernel = try [QueueLab.kernelState(of: 0), QueueLab.kernelState(of: 1)]
            result.counters = queues.map(\.counters)
            return result
        }
        // 20 senders, 30 rounds: 8 with A and R, 7 with r and D.
        #expect(result.arrived == ["A?": 160, "Rx": 160, "r?": 140])
        #expect(result.counters.map(\.packets).reduce(0, +) == 600)
        #expect(result.counters.map(\.accepted).reduce(0, +) == 460)
        #expect(result.counters.map(\.rewritten).reduce(0, +) == 160)
        #expect(result.counters.map(\.dropped).reduce(0, +) == 140)
        #expect(result.counters.map(\.octets).reduce(0, +) == 600 * 30)
        for (counters, kernel) in zip(result.counters, result.kernel) {
            #expect(counters.packets > 0)
            #expect(kernel?.sequence == counters.packets)
            #expect(kernel?.waiting == 0)
            #expect(counters.verdictErrors == 0 && counters.malformed == 0 && counters.overruns == 0)
        }
    }

    @Test func `packets that are no whole UDP datagrams get one verdict each`() throws {
        let (counters, kernel) = try QueueLab.inNamespace { () -> (QueueCounters, QueueLab.KernelState?) in
            let queue = try startQueue(0, HandlerLog())
            try QueueLab.divertAll()
            let raw = try LabSocket.raw()
            var generator = SystemRandomNumberGenerator()
            for index in 0..<400 {
                var packet = labPacket(from: 2, to: 1, port: 4000, Array("A?".utf8))
                switch index % 4 {
                case 0: packet[9] = 6  // TCP with too few octets for a header
                case 1: packet[6] = 0x20  // a first fragment
                case 2: packet.removeLast(8)  // half a UDP header
                default:
                    for place in 20..<28 { packet[place] = .random(in: 0...255, using: &generator) }
                }
                raw.send(packet, to: 1)
            }
            QueueLab.eventually { queue.counters.packets >= 400 }
            return (queue.counters, try QueueLab.kernelState(of: 0))
        }
        #expect(counters.packets == 400)
        #expect(counters.packets == counters.accepted + counters.dropped)
        #expect(counters.dropped >= 300)
        #expect(kernel?.sequence == 400 && kernel?.waiting == 0)
    }

    @Test func `a message that cannot be read gets a drop for the packet in it`() throws {
        let counters = try QueueLab.inNamespace { () -> QueueCounters in
            let queue = try startQueue(0, HandlerLog())
            guard let port = try QueueLab.kernelState(of: 0)?.port else { return QueueCounters() }
            // NFQA_PACKET_HDR with packet number 999 and no payload; then a header alone.
            let header: [UInt8] = [11, 0, 1, 0, 0, 0, 3, 231, 8, 0, 0, 0]
            let message = [36, 0, 0, 0, 0, 3] + [UInt8](repeating: 0, count: 10) + [2, 0, 0, 0] + header
            try LabSocket.netlink(message.dropLast(4), toPort: UInt32(truncatingIfNeeded: port))
            try LabSocket.netlink(message, toPort: UInt32(truncatingIfNeeded: port))
            try LabSocket.netlink([16, 0] + message[2..<16], toPort: UInt32(truncatingIfNeeded: port))
            // The kernel knows no packet 999 and says so.
            QueueLab.eventually { queue.counters.malformed >= 3 && queue.counters.verdictErrors >= 1 }
            return queue.counters
        }
        #expect(counters.malformed == 3)
        #expect(counters.packets == 1 && counters.dropped == 1)
        #expect(counters.verdictErrors == 1)
    }

    @Test func `the checksum state says what the sender left undone`() throws {
        let states = try QueueLab.inNamespace { () -> [ChecksumState] in
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            try LabSocket.udp(host: 2).send(Array("C?".utf8), to: 1, port: 4000)
            try LabSocket.raw().send(labPacket(from: 2, to: 1, port: 4000, Array("C?".utf8)), to: 1)
            QueueLab.eventually { queue.counters.packets >= 2 }
            withExtendedLifetime(receiver) {}
            return log.states.withLock { $0 }
        }
        #expect(states == [.pending, .complete])
    }

    @Test func `a verdict's mark is what the rules behind the queue see`() throws {
        let arrived = try QueueLab.inNamespace { () -> [String] in
            let queue = try startQueue(0, HandlerLog())
            try QueueLab.divertAll()
            // Only what has mark 7 after the queue goes on.
            try QueueLab.shell(
                "nft 'add table ip after; add chain ip after c { type filter hook prerouting priority 0; }; "
                    + "add rule ip after c ip daddr 198.18.0.1 meta mark != 7 drop'")
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            for text in ["A1", "M2", "A3", "M4"] { sender.send(Array(text.utf8), to: 1, port: 4000) }
            QueueLab.eventually { queue.counters.packets >= 4 }
            var arrived: [String] = []
            while let datagram = receiver.receive() { arrived.append(String(decoding: datagram, as: UTF8.self)) }
            withExtendedLifetime(queue) {}
            return arrived
        }
        #expect(arrived == ["M2", "M4"])
    }

    @Test func `an overrun of the receive buffer is counted and survived`() throws {
        let (burst, later, arrived) = try QueueLab.inNamespace { () -> (QueueCounters, QueueCounters, Int) in
            var options = QueueOptions()
            options.receiveBuffer = 4096
            let queue = try startQueue(0, HandlerLog(), options: options)
            try QueueLab.divertAll()
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            for _ in 0..<300 { sender.send(Array("S?".utf8), to: 1, port: 4000) }
            // 20 ms for each that found room; then the burst is over.
            try QueueLab.eventually(within: 10) {
                try queue.counters.overruns > 0 && QueueLab.kernelState(of: 0)?.waiting == 0
            }
            while receiver.receive() != nil {}
            let burst = queue.counters
            var arrived = 0
            for _ in 0..<20 {
                sender.send(Array("A?".utf8), to: 1, port: 4000)
                if receiver.receive() != nil { arrived += 1 }
            }
            return (burst, queue.counters, arrived)
        }
        #expect(burst.overruns >= 1)
        #expect(burst.packets < 300)
        #expect(later.packets == burst.packets + 20)
        #expect(arrived == 20)
    }

    @Test func `a packet that comes cut can be accepted whole, but not rewritten`() throws {
        let (lengths, counters) = try QueueLab.inNamespace { () -> ([Int], QueueCounters) in
            let queue = try startQueue(0, HandlerLog())
            try QueueLab.divertAll()
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            // With lo's MTU of 65536 an unfragmented packet of 65535 octets, four more than a netlink attribute holds.
            for kind in ["A?", "R?"] {
                sender.send(Array(kind.utf8) + [UInt8](repeating: 0x55, count: 65505), to: 1, port: 4000)
            }
            var lengths: [Int] = []
            while let received = receiver.receive() { lengths.append(received.count) }
            return (lengths, queue.counters)
        }
        #expect(lengths == [65507])
        #expect(counters.truncated == 2)
        #expect(counters.accepted == 1 && counters.rewritten == 0 && counters.dropped == 1)
    }

    @Test func `a stream in packets of several segments, all rewritten, arrives as it was sent`() throws {
        let (isEqual, longest, counters) = try QueueLab.inNamespace { () -> (Bool, Int, QueueCounters) in
            let log = HandlerLog()
            let queue = try startQueue(0, log)
            try QueueLab.divertAll()
            // With a wire's MTU; with lo's own, a single segment is longer than a netlink attribute.
            try QueueLab.shell("ip link set lo mtu 1500")
            let sent = (0..<4_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) }
            let received = try LabSocket.stream(sent, from: 2, to: 1, port: 4001)
            return (received == sent, log.longest.load(ordering: .relaxed), queue.counters)
        }
        #expect(isEqual)
        #expect(longest > 10_000)
        #expect(counters.rewritten == counters.packets && counters.truncated == 0 && counters.verdictErrors == 0)
    }

    @Test func `verdicts too long for one call go in parts`() throws {
        let (arrived, counters) = try QueueLab.inNamespace { () -> (Int, QueueCounters) in
            var options = QueueOptions()
            options.sendBuffer = 4096
            let queue = try startQueue(0, HandlerLog(), options: options)
            try QueueLab.divertAll()
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            let datagram = Array("R?".utf8) + [UInt8](repeating: 0x55, count: 1400)
            // The thread is kept, so that the datagrams behind come as one batch of 32.
            sender.send(Array("S?".utf8), to: 1, port: 4000)
            for _ in 0..<32 { sender.send(datagram, to: 1, port: 4000) }
            var arrived = 0
            while let received = receiver.receive() { if received.count == datagram.count { arrived += 1 } }
            return (arrived, queue.counters)
        }
        #expect(arrived == 32)
        #expect(counters.rewritten == 32 && counters.packets == 33)
        #expect(counters.verdictErrors == 0)
        #expect(counters.batches < 20)
    }

    @Test func `a rewritten packet that the kernel cannot take back is dropped, not forgotten`() throws {
        let (counters, kernel) = try QueueLab.inNamespace { () -> (QueueCounters, QueueLab.KernelState?) in
            var options = QueueOptions()
            options.sendBuffer = 4096
            let queue = try startQueue(0, HandlerLog(), options: options)
            try QueueLab.divertAll()
            let sender = try LabSocket.udp(host: 2)
            sender.send(Array("R?".utf8) + [UInt8](repeating: 0x55, count: 30000), to: 1, port: 4000)
            QueueLab.eventually { queue.counters.dropped >= 1 }
            return (queue.counters, try QueueLab.kernelState(of: 0))
        }
        #expect(counters.dropped == 1 && counters.accepted == 0 && counters.rewritten == 0)
        #expect(kernel?.waiting == 0 && kernel?.sequence == 1)
    }

    @Test func `a verdict for a packet that is gone is counted and survived`() throws {
        let (counters, arrived) = try QueueLab.inNamespace { () -> (QueueCounters, Int) in
            let queue = try startQueue(0, HandlerLog())
            try QueueLab.divertAll()
            // A base chain whose removal makes the kernel drop what waits in the namespace's queues.
            let chain = "ip gone c { type filter hook prerouting priority 10; }"
            try QueueLab.shell("nft 'add table ip gone; add chain \(chain)'")
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            let sender = try LabSocket.udp(host: 2)
            for _ in 0..<10 { sender.send(Array("S?".utf8), to: 1, port: 4000) }
            try QueueLab.shell("nft delete table ip gone")
            QueueLab.eventually { queue.counters.packets >= 10 && queue.counters.verdictErrors > 0 }
            while receiver.receive() != nil {}
            sender.send(Array("A?".utf8), to: 1, port: 4000)
            return (queue.counters, receiver.receive() == nil ? 0 : 1)
        }
        #expect(counters.verdictErrors >= 1)
        #expect(arrived == 1)
    }

    @Test func `a queue that another has is refused with a sentence that says so`() throws {
        let error = try QueueLab.inNamespace { () -> NetlinkError? in
            let first = try startQueue(9, HandlerLog())
            defer { first.stop() }
            do {
                _ = try startQueue(9, HandlerLog())
                return nil
            } catch let error as NetlinkError {
                return error
            }
        }
        #expect(error == NetlinkError(operation: .bindQueue(9), errno: EBUSY))
        #expect(error?.description.contains("queue 9: the queue is taken by another process") == true)
    }

    @Test func `stop ends the thread, destroys the handler and gives the queue back`() throws {
        let log = HandlerLog()
        let (before, after, kernel) = try QueueLab.inNamespace { () -> (Int, Int, QueueLab.KernelState?) in
            let queue = try startQueue(4711, log)
            QueueLab.eventually { log.handlersMade.load(ordering: .relaxed) == 1 }
            let before = threads(named: "nfq-4711")
            queue.stop()
            queue.stop()
            // A joined thread can show in /proc for a moment more.
            QueueLab.eventually { threads(named: "nfq-4711") == 0 }
            let after = threads(named: "nfq-4711")
            let kernel = try QueueLab.kernelState(of: 4711)
            // The number is free again.
            try startQueue(4711, HandlerLog()).stop()
            return (before, after, kernel)
        }
        #expect(before == 1)
        #expect(after == 0)
        #expect(kernel == nil)
        #expect(log.handlersDestroyed.load(ordering: .relaxed) == 1)
    }

    @Test func `a queue thread that nobody keeps stops`() throws {
        let log = HandlerLog()
        _ = try QueueLab.inNamespace { try startQueue(4712, log).queue }
        #expect(log.handlersDestroyed.load(ordering: .relaxed) == 1)
        #expect(QueueLab.eventually { threads(named: "nfq-4712") == 0 })
    }

    @Test func `stopping under load leaves no packet without a verdict`() throws {
        let (counters, sent) = try QueueLab.inNamespace { () -> (QueueCounters, Int) in
            let queue = try startQueue(0, HandlerLog())
            try QueueLab.divertAll()
            let sender = try LabSocket.udp(host: 2)
            let receiver = try LabSocket.udp(host: 1, port: 4000)
            // Behind one that keeps the thread, so that stop finds packets in the socket.
            sender.send(Array("S?".utf8), to: 1, port: 4000)
            usleep(5000)
            for _ in 0..<500 { sender.send(Array("A?".utf8), to: 1, port: 4000) }
            queue.stop()
            withExtendedLifetime(receiver) {}
            return (queue.counters, 501)
        }
        #expect(counters.packets == UInt64(sent))
        #expect(counters.accepted == UInt64(sent))
        #expect(counters.verdictErrors == 0)
    }

    private func threads(named name: String) -> Int {
        let tasks = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")) ?? []
        return tasks.filter { task in
            (try? String(contentsOfFile: "/proc/self/task/\(task)/comm", encoding: .utf8)) == name + "\n"
        }.count
    }
}
