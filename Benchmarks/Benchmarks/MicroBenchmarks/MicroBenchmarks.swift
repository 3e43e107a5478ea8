// SPDX-License-Identifier: GPL-3.0-or-later

import Benchmark
import Migration
@_spi(Benchmarks) import NFQueueBridge
import Rewriter
import Spoofer
import Wire

let benchmarks: @Sendable () -> Void = {
    packetPath()
    controlPlane()
}

/// What a queue thread does for a packet, step by step.
@Sendable
func packetPath() {
    measure("recognise a segment") {
        let packet = Samples.packet(0, length: 64)
        return { Recognition(packet.span) }
    }
    for flows in [1, 1000, 100_000] {
        measure("flow look-up, hit, \(flows) flows") {
            let shared = SharedTable(flows: flows)
            // Steps through the table, so that large ones are not served from the processor's cache alone.
            var number = 0
            return {
                number = (number &+ 7919) % flows
                return shared.table.lookup(FlowKey(stage: .prerouting, tuple: Samples.tuple(number)))
            }
        }
        measure("packet that no rule covers, \(flows) flows") {
            let shared = SharedTable(flows: flows)
            var packet = Samples.packet(flows + 1, length: 64)
            return { shared.judge(&packet, checksum: .complete) }
        }
    }
    for (octets, state) in [(64, ChecksumState.complete), (1500, .complete), (64, .pending), (1500, .pending)] {
        measure("rewrite, \(octets) octets, checksum \(state)") {
            let shared = SharedTable(flows: 1)
            // The packet comes as it came before each time: destination and port are restored, 6 octets.
            var packet = Samples.packet(0, length: octets)
            let fresh = packet
            return {
                for index in 16..<24 { packet[index] = fresh[index] }
                return shared.judge(&packet, checksum: state)
            }
        }
    }
    measure("mark a segment") {
        let shared = SharedTable(flows: 1, treatment: .mark)
        var packet = Samples.packet(0, length: 64)
        return { shared.judge(&packet, checksum: .pending) }
    }
    for octets in [1500, 65535] {
        measure("full checksum, \(octets) octets") {
            let packet = [UInt8](repeating: 0x5a, count: octets)
            return {
                var sum = InternetChecksum()
                sum.add(packet.span, 0..<octets)
                return sum.checksum
            }
        }
    }
    measure("encode 32 verdicts, plain") {
        let batch = VerdictEncoding(count: 32, isRewritten: false)
        return { batch.encode() }
    }
    measure("encode 32 verdicts, rewritten") {
        let batch = VerdictEncoding(count: 32, isRewritten: true)
        return { batch.encode() }
    }
}

/// What the control plane does for a migration, apart from talking to the kernel.
@Sendable
func controlPlane() {
    measure("reset handshake: order to first challenges") {
        let order = ResetHandshake.Order(tuple: Samples.tuple(0).reversed, kind: .client)
        return {
            var handshake = ResetHandshake(order, seed: 1)
            return handshake.start(at: 0)
        }
    }
    measure("reset handshake: challenge ACK to RST") {
        let tuple = Samples.tuple(0)
        var started = ResetHandshake(ResetHandshake.Order(tuple: tuple, kind: .server), seed: 1)
        _ = started.start(at: 0)
        let answer = ObservedSegment(
            tuple: tuple.reversed, sequence: SequenceNumber(1_000_000), acknowledgement: SequenceNumber(2_000_000),
            flags: .ack, window: 512, payloadLength: 0)
        return {
            var handshake = started
            return handshake.observed(answer, at: 1_000_000)
        }
    }
    for datapath in Datapath.allCases {
        measure("session change of a migration, datapath \(datapath)") {
            let tuple = Samples.tuple(0)
            let key = SessionKey(
                client: tuple.source.address, clientPort: tuple.source.port, home: tuple.destination)
            let before = Session(key: key)
            var after = before
            after.binding = Binding(host: Samples.host, datapath: datapath)
            after.transits = [
                tuple: StandingTransit(transit: .awaitingSYN, host: Samples.home, lifetime: 60, migration: 1),
                tuple.reversed: StandingTransit(transit: .frozen, host: Samples.home, lifetime: 60, migration: 1),
            ]
            return { SessionChange(from: before, to: after) }
        }
    }
}
