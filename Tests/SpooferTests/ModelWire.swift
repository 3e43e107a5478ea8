// SPDX-License-Identifier: GPL-3.0-or-later

import Spoofer
import Wire

/// A handshake and a modelled peer with a wire between them that loses, doubles and reorders, on a virtual clock.
struct ModelWire {
    enum Event {
        case toPeer(TCPSegment)
        case toHandshake(ObservedSegment)
        /// Data that had passed the gateway before the freeze reaches the peer: it expects more now.
        case dataArrives(UInt32)
        /// The peer says something by itself: data, a repeated SYN-ACK.
        case peerSpeaks(TCPFlags, UInt32)
        /// The client's application opens the next connection on the same four-tuple.
        case reconnect
        /// The next connection is set up, with numbers of its own.
        case established
    }

    var handshake: ResetHandshake
    var peer: ModelPeer
    var random: SplitMix64
    var loss = 0.0
    var duplication = 0.0
    var delay: ClosedRange<UInt64> = 200_000...200_000
    /// How long the client's application takes to reconnect; nil when it does not.
    var reconnectsAfter: UInt64?

    private(set) var now: UInt64 = 1_000_000_000
    private var queue: [(at: UInt64, number: Int, event: Event)] = []
    private var number = 0
    private(set) var sent: [(at: UInt64, segment: TCPSegment)] = []
    private(set) var outcomes: [(at: UInt64, outcome: ResetHandshake.Outcome)] = []
    private(set) var sentAfterReconnect = 0
    private(set) var isNext = false
    private(set) var nextWasReset = false
    private var hasReconnected = false
    private(set) var steps = 0

    init(_ handshake: ResetHandshake, _ peer: ModelPeer, seed: UInt64) {
        self.handshake = handshake
        self.peer = peer
        random = SplitMix64(seed: seed)
    }

    mutating func schedule(_ event: Event, after wait: UInt64) {
        number += 1
        queue.append((now + wait, number, event))
    }

    /// Puts something on the wire, with what the wire does to it.
    private mutating func transmit(_ event: Event) {
        if Double.random(in: 0..<1, using: &random) < loss { return }
        schedule(event, after: .random(in: delay, using: &random))
        if Double.random(in: 0..<1, using: &random) < duplication {
            schedule(event, after: .random(in: delay, using: &random))
        }
    }

    private mutating func carryOut(_ actions: [ResetHandshake.Action]) {
        for action in actions {
            switch action {
            case .send(let segment):
                sent.append((now, segment))
                if hasReconnected { sentAfterReconnect += 1 }
                transmit(.toPeer(segment))
            case .finish(let outcome):
                outcomes.append((now, outcome))
                if outcome == .reconnected { hasReconnected = true }
            }
        }
    }

    /// Runs until nothing is left to happen or the clock has gone on for `limit`.
    mutating func run(for limit: UInt64 = 20_000_000_000) {
        let end = now + limit
        carryOut(handshake.start(at: now))
        while steps < 100_000 {
            let next = queue.indices.min { (queue[$0].at, queue[$0].number) < (queue[$1].at, queue[$1].number) }
            let eventTime = next.map { queue[$0].at }
            guard let time = [eventTime, handshake.deadline].compactMap(\.self).min(), time <= end else { return }
            steps += 1
            now = max(now, time)
            if let next, eventTime == time {
                handle(queue.remove(at: next).event)
            } else {
                carryOut(handshake.deadlinePassed(at: now))
            }
        }
    }

    private mutating func handle(_ event: Event) {
        switch event {
        case .toPeer(let segment):
            let before = peer.resets
            let answer = peer.receive(segment, at: now)
            if peer.resets > before {
                if isNext { nextWasReset = true }
                if let reconnectsAfter, !isNext { schedule(.reconnect, after: reconnectsAfter) }
            }
            if let answer { transmit(.toHandshake(answer)) }
        case .toHandshake(let segment):
            if segment.flags.opensConnection, !isNext { schedule(.established, after: 300_000) }
            carryOut(handshake.observed(segment, at: now))
        case .dataArrives(let count):
            if peer.state == .established { peer.receiveNext = peer.receiveNext.advanced(by: Int(count)) }
        case .peerSpeaks(let flags, let length):
            let isHalfOpen = peer.state == .synReceived
            guard peer.state == .established || isHalfOpen, flags.contains(.syn) == isHalfOpen else { return }
            peer.sendNext = peer.sendNext.advanced(by: Int(length))
            transmit(.toHandshake(peer.speak(flags, length: length)))
        case .reconnect:
            guard !isNext else { return }
            if peer.state == .closed {
                peer.state = .synSent
                peer.sendNext = SequenceNumber(UInt32.random(in: 0...UInt32.max, using: &random))
            }
            var syn = peer.speak(.syn)
            syn.acknowledgement = SequenceNumber(0)
            transmit(.toHandshake(syn))
            schedule(.reconnect, after: 1_000_000_000)
        case .established:
            guard !isNext else { return }
            isNext = true
            peer.state = .established
            peer.receiveNext = SequenceNumber(UInt32.random(in: 0...UInt32.max, using: &random))
            peer.garbage = 0
            // Its first words, which a gateway that forgot to stop would show to the handshake.
            for _ in 0..<3 { transmit(.toHandshake(peer.speak(length: 100))) }
        }
    }
}
