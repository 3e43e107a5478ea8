// SPDX-License-Identifier: GPL-3.0-or-later

import AllocationCounter
import Daemon
import Foundation
import NFQueueBridge
import Rewriter
import Ruleset
import Testing
import Wire

/// What the queue threads run, without the queues: packets in, verdicts out.
@Suite(.serialized) struct PacketHandlerTests {
    private static let prerouting: UInt8 = 0
    private static let postrouting: UInt8 = 4
    private static let mark: UInt32 = 0x6e60_0000

    private struct Cast {
        let client: Endpoint
        let home: Endpoint
        let host: Endpoint

        init?(_ client: String, _ home: String, _ host: String) {
            guard let client = Endpoint(client), let home = Endpoint(home), let host = Endpoint(host) else {
                return nil
            }
            (self.client, self.home, self.host) = (client, home, host)
        }

        func packet(from source: Endpoint, to destination: Endpoint, _ flags: TCPFlags = .ack) -> [UInt8] {
            TCPSegment(
                tuple: FourTuple(source: source, destination: destination), sequence: SequenceNumber(1),
                acknowledgement: SequenceNumber(2), flags: flags, window: 100, payloadLength: 64
            ).encode()
        }
    }

    private static let casts = [
        Cast("192.0.2.9:40000", "198.51.100.1:80", "198.51.100.2:8080"),
        Cast("[2001:db8::9]:40000", "[2001:db8:1::1]:80", "[2001:db8:1::2]:8080"),
    ].compactMap { $0 }

    private func flows(_ cast: Cast, _ rule: FlowRule) -> [(key: FlowKey, rule: FlowRule)] {
        [(FlowKey(stage: .prerouting, tuple: FourTuple(source: cast.client, destination: cast.home)), rule)]
    }

    @Test func `a frozen connection's segments are dropped and told to the control plane`() throws {
        for cast in Self.casts {
            let ring = try ObservationRing<Observation>(capacity: 16)
            var handler = PacketHandler(observations: ring, mark: Self.mark, seed: 1, flows: flows(cast, .freeze))
            var octets = cast.packet(from: cast.client, to: cast.home)
            let verdict = judge(&handler, &octets, hook: Self.prerouting)
            #expect(verdict == .drop)
            var seen: [ObservedSegment] = []
            handler.endOfBatch(at: 0)
            ring.drain {
                #expect(!$0.hasPassed)
                seen.append($0.segment)
            }
            #expect(seen.map(\.tuple) == [FourTuple(source: cast.client, destination: cast.home)])
            #expect(seen.first?.payloadLength == 64)
        }
    }

    @Test func `a translated packet teaches the kernel its reply`() throws {
        for cast in Self.casts {
            let ring = try ObservationRing<Observation>(capacity: 16)
            var handler = PacketHandler(
                observations: ring, mark: Self.mark, seed: 1,
                flows: flows(cast, .passage(.translateDestination(cast.host))))
            var octets = cast.packet(from: cast.client, to: cast.home)
            #expect(
                judge(&handler, &octets, hook: Self.prerouting)
                    == Verdict(decision: .repeat, rewritten: true, mark: Self.mark | MarkLayout.learns))
            #expect(octets == cast.packet(from: cast.client, to: cast.host))
        }
    }

    @Test func `with treatment mark a verdict carries the translation's mark and the packet stays as it is`() throws {
        for cast in Self.casts {
            let ring = try ObservationRing<Observation>(capacity: 16)
            let translation = Translation(endpoint: cast.host, clientPort: 0)
            var handler = PacketHandler(
                observations: ring, mark: Self.mark, seed: 1, treatment: .mark,
                flows: flows(cast, .passage(.translateDestination(cast.host))))
            let sent = cast.packet(from: cast.client, to: cast.home)
            var octets = sent
            // What the kernel does not know yet must not pass as it is.
            #expect(judge(&handler, &octets, hook: Self.prerouting) == .drop)
            handler.receive(.mark(5, of: translation))
            let learning = Verdict(decision: .repeat, mark: Self.mark | MarkLayout.learns | 5)
            #expect(judge(&handler, &octets, hook: Self.prerouting) == learning)
            #expect(judge(&handler, &octets, hook: Self.prerouting) == Verdict(decision: .repeat, mark: Self.mark | 5))
            #expect(octets == sent)
        }
    }

    @Test func `when little comes every packet renews what the kernel has learnt, in a flood one in many does`() throws
    {
        let cast = try #require(Self.casts.first)
        let ring = try ObservationRing<Observation>(capacity: 16)
        var handler = PacketHandler(
            observations: ring, mark: Self.mark, seed: 1, flows: flows(cast, .passage(.translateDestination(cast.host)))
        )
        var renewals = 0
        func take() {
            var octets = cast.packet(from: cast.client, to: cast.home)
            if judge(&handler, &octets, hook: Self.prerouting).mark != nil { renewals += 1 }
        }
        let second: UInt64 = 1_000_000_000
        for number in 1...50 {
            take()
            handler.endOfBatch(at: UInt64(number) * 7200 * second)
        }
        #expect(renewals == 50)
        // A hundred thousand packets in a second.
        let start = 51 * 7200 * second
        handler.endOfBatch(at: start)
        renewals = 0
        for batch in 1...1000 {
            for _ in 0..<100 { take() }
            handler.endOfBatch(at: start + UInt64(batch) * second / 1000)
        }
        #expect((2000...3000).contains(renewals), "\(renewals) of 100000")
        // A clock that has gone back harms nothing.
        handler.endOfBatch(at: 0)
        take()
    }

    @Test func `a SYN of a bound session is told to the control plane, its data are not`() throws {
        for cast in Self.casts {
            let ring = try ObservationRing<Observation>(capacity: 16)
            var handler = PacketHandler(
                observations: ring, mark: Self.mark, seed: 1,
                flows: flows(cast, .passage(.translateDestination(cast.host))))
            for flags in [TCPFlags.syn, .ack, [.ack, .psh], [.ack, .fin]] {
                var octets = cast.packet(from: cast.client, to: cast.home, flags)
                _ = judge(&handler, &octets, hook: Self.prerouting)
            }
            var seen: [TCPFlags] = []
            handler.endOfBatch(at: 0)
            ring.drain {
                #expect($0.hasPassed)
                seen.append($0.segment.flags)
            }
            #expect(seen == [.syn])
        }
    }

    @Test func `a SYN that has passed does not wake who looks anyway, a segment that was stopped does`() throws {
        let cast = Self.casts[0]
        let ring = try ObservationRing<Observation>(capacity: 16)
        var handler = PacketHandler(
            observations: ring, mark: Self.mark, seed: 1, flows: flows(cast, .passage(.translateDestination(cast.host)))
        )
        func isWoken(after rule: FlowRule, _ flags: TCPFlags) -> Bool {
            for flow in flows(cast, rule) { handler.receive(.set(flow.key, flow.rule)) }
            var octets = cast.packet(from: cast.client, to: cast.home, flags)
            _ = judge(&handler, &octets, hook: Self.prerouting)
            handler.endOfBatch(at: 0)
            var descriptor = pollfd(fd: ring.eventFileDescriptor, events: Int16(POLLIN), revents: 0)
            let isWoken = poll(&descriptor, 1, 0) == 1
            var count = 0
            ring.drain { _ in count += 1 }
            #expect(count == 1)
            return isWoken
        }
        let passage = Passage.translateDestination(cast.host)
        #expect(isWoken(after: .passage(passage), .syn), "nobody had looked yet")
        #expect(!isWoken(after: .passage(passage), .syn))
        #expect(isWoken(after: .freeze, .syn))
        #expect(isWoken(after: .freeze, .ack))
        #expect(isWoken(after: .holdSYN(.pass), .syn))
        ring.rest()
        #expect(isWoken(after: .passage(passage), .syn))
    }

    @Test func `a SYN that may be owed to a session waits, and is dropped when nobody would hear of it`() throws {
        for cast in Self.casts {
            let ring = try ObservationRing<Observation>(capacity: 2)
            let tuple = FourTuple(source: cast.client, destination: cast.home)
            var handler = PacketHandler(
                observations: ring, mark: Self.mark, seed: 1, queue: 3,
                flows: [(FlowKey(stage: .prerouting, tuple: tuple).anyPort, .holdSYN(.pass))])
            var verdicts: [Verdict] = []
            for number in 7..<10 as Range<UInt32> {
                var octets = cast.packet(from: cast.client, to: cast.home, .syn)
                verdicts.append(judge(&handler, &octets, hook: Self.prerouting, number: number))
            }
            #expect(verdicts == [.hold, .hold, .drop])
            var seen: [HeldPacket?] = []
            // Those before it in its batch must be with conntrack when it is decided about.
            ring.drain { seen.append($0.held) }
            #expect(seen.isEmpty)
            handler.endOfBatch(at: 0)
            ring.drain {
                #expect(!$0.hasPassed && !$0.opensConnection && $0.segment.tuple == tuple)
                seen.append($0.held)
            }
            #expect(seen == [HeldPacket(queue: 3, number: 7), HeldPacket(queue: 3, number: 8)])
            var octets = cast.packet(from: cast.client, to: cast.home, .ack)
            #expect(judge(&handler, &octets, hook: Self.prerouting) == .accept)
        }
    }

    @Test(.enabled(if: allocation_count_of_this_thread() >= 0, "allocations cannot be counted in this build"))
    func `fifty thousand packets of each kind allocate nothing, on both datapaths`() throws {
        for cast in Self.casts {
            let reply = FourTuple(source: cast.host, destination: cast.client)
            let kinds: [(rule: FlowRule, hook: UInt8, key: FlowKey?, packet: [UInt8])] = [
                (.freeze, Self.prerouting, nil, cast.packet(from: cast.client, to: cast.home)),
                (.awaitSYN(.pass), Self.prerouting, nil, cast.packet(from: cast.client, to: cast.home)),
                (.holdSYN(.pass), Self.prerouting, nil, cast.packet(from: cast.client, to: cast.home, .syn)),
                (.awaitDecision, Self.prerouting, nil, cast.packet(from: cast.client, to: cast.home)),
                (.reconnected(.pass), Self.prerouting, nil, cast.packet(from: cast.client, to: cast.home)),
                (
                    .passage(.translateDestination(cast.host)), Self.prerouting, nil,
                    cast.packet(from: cast.client, to: cast.home)
                ),
                (
                    .passage(.translateSource(cast.home)), Self.postrouting,
                    FlowKey(stage: .postrouting, tuple: reply), cast.packet(from: cast.host, to: cast.client)
                ),
            ]
            for kind in kinds {
                let ring = try ObservationRing<Observation>(capacity: 256)
                var flows = flows(cast, kind.rule)
                if let key = kind.key { flows[0].key = key }
                var handler = PacketHandler(observations: ring, mark: Self.mark, seed: 1, flows: flows)
                let original = kind.packet
                // Storage of its own before the counting starts.
                var octets = [UInt8](unsafeUninitializedCapacity: original.count) { buffer, count in
                    for index in original.indices { buffer[index] = original[index] }
                    count = original.count
                }
                let before = allocation_count_of_this_thread()
                for round in 0..<50_000 {
                    for index in octets.indices { octets[index] = original[index] }
                    _ = judge(&handler, &octets, hook: kind.hook)
                    if round % 32 == 31 { handler.endOfBatch(at: 0) }
                }
                let allocated = allocation_count_of_this_thread() - before
                #expect(allocated == 0, "\(kind.rule)")
            }
        }
    }

    private func judge(_ handler: inout PacketHandler, _ octets: inout [UInt8], hook: UInt8, number: UInt32 = 0)
        -> Verdict
    {
        var span = octets.mutableSpan
        return handler.verdict(
            for: &span, PacketMetadata(hook: hook, checksum: .complete, mark: 0, isWhole: true, number: number))
    }
}
