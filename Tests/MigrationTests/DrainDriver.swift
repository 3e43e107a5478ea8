// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Wire

/// Runs a drain as the daemon does, with migrations that take as long as the test wants.
struct DrainDriver {
    var drain: Drain
    var now: UInt64 = 1_000_000_000
    /// Sessions on their way, with the host.
    var inFlight: [(member: Int, host: Int)] = []
    var started: [(member: Int, host: Int, at: UInt64)] = []
    var effects: [Drain.Effect] = []
    var sentBack: [Int] = []
    /// What the next examination finds.
    var broken: String?
    /// Like a service's rate: so many nanoseconds between two admissions; nil for none.
    var interval: UInt64?
    var placeAt: UInt64 = 0
    var postponements = 0
    /// What the hosts answer, by place.
    var refusals: [Int: String] = [:]
    var greatestInFlight = 0

    init(_ plan: Drain.Plan) { drain = Drain(plan) }

    mutating func tell(_ event: Drain.Event) {
        var events = [event]
        while !events.isEmpty {
            for effect in drain.handle(events.removeFirst(), at: now) {
                effects.append(effect)
                switch effect {
                case .check:
                    for host in drain.plan.hosts.indices {
                        events.append(.checked(host: host, refusal: refusals[host]))
                    }
                case .migrate(let member, _) where interval != nil && now < placeAt:
                    postponements += 1
                    events.append(.postponed(member, until: placeAt, reason: "its rate"))
                case .migrate(let member, let host):
                    placeAt = now + (interval ?? 0)
                    inFlight.append((member, host))
                    started.append((member, host, now))
                    greatestInFlight = max(greatestInFlight, inFlight.count)
                case .examine: events.append(.examined(broken: broken))
                case .sendBack(let members):
                    sentBack += members
                    events += members.map { .returned($0, isBack: true) }
                case .progress, .finish: break
                }
            }
        }
    }

    /// Ends everything under way.
    mutating func end(_ result: Drain.Result = .moved(isProven: true)) {
        let ending = inFlight
        inFlight = []
        for each in ending { tell(.ended(each.member, result)) }
    }

    /// Lets time pass until the drain's deadline, and ends what is under way; until it is finished or nothing happens.
    mutating func run(_ result: Drain.Result = .moved(isProven: true)) {
        while drain.outcome == nil {
            if !inFlight.isEmpty {
                end(result)
            } else if let deadline = drain.deadline {
                now = max(now, deadline)
                tell(.deadlinePassed)
            } else {
                return
            }
        }
    }

    var steps: [String] {
        effects.compactMap { if case .progress(let step, _) = $0 { step } else { nil } }
    }
}

func drainHosts(_ weights: UInt32...) -> [WeightedHost] {
    weights.enumerated().map { index, weight in
        let address = IPAddress.v4(IPv4Address(rawValue: 0xc633_6402 + UInt32(index)))
        return WeightedHost(host: .init(address: address), weight: weight)
    }
}

/// SplitMix64, seeded.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
