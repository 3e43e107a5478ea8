// SPDX-License-Identifier: GPL-3.0-or-later

import AllocationCounter
import Daemon
import Foundation
import NFQueueBridge
import Rewriter
import Testing
import Wire

/// The daemon's own handler, with its thread's allocations counted.
private struct CountedHandler: VerdictHandler, ~Copyable {
    private var handler: PacketHandler
    private let log: HandlerLog

    init(_ handler: consuming PacketHandler, _ log: HandlerLog) {
        self.handler = handler
        self.log = log
        allocation_counter_register(log.allocations)
    }

    deinit { allocation_counter_register(nil) }

    mutating func verdict(for packet: inout MutableSpan<UInt8>, _ metadata: PacketMetadata) -> Verdict {
        handler.verdict(for: &packet, metadata)
    }

    mutating func receive(_ message: FlowChange) { handler.receive(message) }

    mutating func endOfBatch(at time: UInt64) { handler.endOfBatch(at: time) }
}

@Suite(.serialized, .enabled(if: allocation_count_of_this_thread() >= 0, "a sanitizer has malloc for itself"))
struct PacketPathAllocationTests {
    private static func endpoint(_ host: UInt32, _ port: UInt16) -> Endpoint {
        Endpoint(address: .v4(IPv4Address(rawValue: 0xc612_0000 | host)), port: port)
    }

    @Test(
        .enabled(if: QueueLab.isAvailable, Comment(rawValue: QueueLab.requirement)), arguments: Treatment.allCases)
    func `the daemon's packet path allocates nothing from the kernel's queue to its verdict`(
        _ treatment: Treatment
    ) throws {
        struct Result: Sendable {
            var dropped: UInt64 = 0
            var rewritten: UInt64 = 0
            var accepted: UInt64 = 0
            var observed = 0
            var allocated = 0
        }
        let home = Self.endpoint(1, 80)
        func tuple(_ port: UInt16) -> FourTuple { FourTuple(source: Self.endpoint(2, port), destination: home) }
        let flows: [(key: FlowKey, rule: FlowRule)] = [
            (FlowKey(stage: .prerouting, tuple: tuple(1001)), .freeze),
            (FlowKey(stage: .prerouting, tuple: tuple(1002)), .passage(.translateDestination(Self.endpoint(3, 81)))),
            (FlowKey(stage: .prerouting, tuple: tuple(1003)), .passage(.pass)),
            (FlowKey(stage: .prerouting, tuple: tuple(1004)), .awaitSYN(.pass)),
        ]
        let packets = (1001...1004).map { port in
            TCPSegment(
                tuple: tuple(port), sequence: SequenceNumber(1), acknowledgement: SequenceNumber(2), flags: .ack,
                window: 512, payloadLength: 100
            ).encode()
        }
        let result = try QueueLab.inNamespace { () -> Result in
            let log = HandlerLog()
            let ring = try ObservationRing<Observation>(capacity: 4096)
            let queue = try QueueThread<CountedHandler>(queue: 0, options: QueueOptions()) {
                let marks = [Translation(endpoint: Self.endpoint(3, 81), clientPort: 0): UInt32(1)]
                return CountedHandler(
                    PacketHandler(
                        observations: ring, mark: 0x6e60_0000, seed: 7, treatment: treatment, marks: marks, flows: flows
                    ),
                    log)
            }
            // A verdict with a mark brings its packet back to the rule.
            try QueueLab.divertAll(unmarked: true)
            // What arrives would be answered with a RST.
            try QueueLab.shell(
                "nft 'add table inet mute; add chain inet mute input { type filter hook input priority 0; policy drop; }'"
            )
            let sender = try LabSocket.raw()
            var result = Result()
            var sent: UInt64 = 0
            var observed: UInt64 = 0
            func send(until count: UInt64) {
                while sent < count {
                    sender.send(packets[Int(sent % 4)], to: 1)
                    sent += 1
                    while sent - queue.counters.packets > 1000 { usleep(100) }
                    if sent % 1000 == 0 { ring.drain { _ in observed += 1 } }
                }
                QueueLab.eventually { queue.counters.packets >= count }
                // The end of a batch is told after its packets are counted.
                QueueLab.eventually {
                    ring.drain { _ in observed += 1 }
                    return observed >= count / 2
                }
            }
            send(until: 1000)
            let before = queue.counters
            let allocated = log.allocationCount
            let seen = observed
            send(until: 51_000)
            result.observed = Int(observed - seen)
            result.dropped = queue.counters.dropped - before.dropped
            result.rewritten = queue.counters.rewritten - before.rewritten
            result.accepted = queue.counters.accepted - before.accepted
            result.allocated = allocated == 0 ? -1 : log.allocationCount - allocated
            return result
        }
        #expect(result.rewritten == 12_500)
        #expect(result.dropped == 25_000)
        #expect(result.accepted == 25_000)
        #expect(result.observed == 25_000)
        #expect(result.allocated == 0)
    }

    @Test(arguments: Treatment.allCases)
    func `a flow table allocates nothing for a packet of IPv6`(_ treatment: Treatment) {
        func endpoint(_ host: UInt64, _ port: UInt16) -> Endpoint {
            Endpoint(address: .v6(IPv6Address(high: 0x2001_0db8 << 32, low: host)), port: port)
        }
        let tuples = (0..<4).map {
            FourTuple(source: endpoint(2, 1000 + $0), destination: endpoint($0 == 3 ? 9 : 1, 80))
        }
        let passage = Passage.translateDestination(endpoint(3, 81))
        var table = FlowTable(seed: 7, treatment: treatment)
        table.setMark(1, of: Translation(endpoint: endpoint(3, 81), clientPort: 0))
        table.set(FlowKey(stage: .prerouting, tuple: tuples[0]), .passage(passage))
        table.set(FlowKey(stage: .prerouting, tuple: tuples[1]), .awaitSYN(passage))
        let fresh = tuples.map {
            TCPSegment(
                tuple: $0, sequence: SequenceNumber(1), acknowledgement: SequenceNumber(2), flags: .ack, window: 512,
                payloadLength: 100
            ).encode()
        }
        var packets = fresh
        var rulings: [Ruling: Int] = [.accept: 0, .acceptMarked: 0, .acceptRewritten: 0, .drop: 0]
        func judgeAll() {
            for place in packets.indices {
                for octet in fresh[place].indices { packets[place][octet] = fresh[place][octet] }
                var span = packets[place].mutableSpan
                rulings[
                    table.judge(&span, stage: .prerouting, checksum: .complete, isWhole: true).ruling, default: 0] += 1
            }
        }
        judgeAll()
        let before = allocation_count_of_this_thread()
        for _ in 0..<1000 { judgeAll() }
        #expect(allocation_count_of_this_thread() == before)
        let passed: Ruling = treatment == .mark ? .acceptMarked : .acceptRewritten
        #expect(rulings[passed] == 1001 && rulings[.drop] == 1001 && rulings[.accept] == 2002)
    }
}
