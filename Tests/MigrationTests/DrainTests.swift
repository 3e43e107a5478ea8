// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Testing

@Suite struct DrainTests {
    @Test func `every session moves, in exact shares`() {
        var driver = DrainDriver(Drain.Plan(members: 10_000, hosts: drainHosts(3, 1)))
        driver.tell(.begin)
        driver.run()
        #expect(driver.drain.outcome == .completed)
        #expect(driver.drain.spread.counts == [7500, 2500])
        #expect(driver.drain.counts.moved == 10_000)
        #expect(driver.started.map(\.member) == Array(0..<10_000))
    }

    @Test func `the limit of migrations under way is kept and used`() {
        var driver = DrainDriver(Drain.Plan(members: 1000, hosts: drainHosts(1), inFlight: 17))
        driver.tell(.begin)
        #expect(driver.inFlight.count == 17)
        driver.run()
        #expect(driver.greatestInFlight == 17)
        #expect(driver.drain.counts.moved == 1000)
    }

    @Test(arguments: [0.5, 7, 100, 500, 3000]) func `a rate is kept over the whole`(rate: Double) {
        let count = Int(max(20, rate * 4))
        var driver = DrainDriver(Drain.Plan(members: count, hosts: drainHosts(1), rate: rate, inFlight: 100_000))
        driver.tell(.begin)
        driver.run()
        let first = driver.started[0].at
        let seconds = Double(driver.started[count - 1].at - first) / 1e9
        #expect(abs(Double(count - 1) / seconds - rate) <= 0.02 * rate)
        // No window of a second has more than the rate and what a tenth of a second makes up for.
        for (index, each) in driver.started.enumerated() {
            let within = driver.started[index...].prefix { $0.at < each.at + 1_000_000_000 }.count
            #expect(Double(within) <= rate * 1.1 + 2)
        }
    }

    @Test func `a delay is not made up for by a burst`() {
        var driver = DrainDriver(Drain.Plan(members: 1000, hosts: drainHosts(1), rate: 100, inFlight: 1000))
        driver.tell(.begin)
        driver.now += 5_000_000_000
        let before = driver.started.count
        driver.tell(.deadlinePassed)
        #expect(driver.started.count - before <= 11)
    }

    @Test(arguments: [0, 0.1]) func `a service's rate slows the drain down, and nobody fails`(canary: Double) {
        var driver = DrainDriver(Drain.Plan(members: 300, hosts: drainHosts(3, 1), canary: canary))
        driver.interval = 20_000_000
        let start = driver.now
        driver.tell(.begin)
        driver.run()
        #expect(driver.drain.outcome == .completed)
        #expect(driver.drain.counts.moved == 300 && driver.drain.counts.failed == 0 && driver.drain.waiting == 0)
        #expect(driver.drain.spread.counts == [225, 75])
        #expect(Set(driver.started.map(\.member)).count == 300)
        // 50 a second, and the canary's settle time.
        let seconds = Double((driver.started.last?.at ?? 0) - start) / 1e9 - (canary > 0 ? 2 : 0)
        #expect(abs(seconds - 299 * 0.02) < 0.6)
        // It waits, instead of asking all the time.
        #expect(driver.postponements < 300 * 2 * Drain.mostPostponed)
        #expect(driver.steps.filter { $0 == "slowed" }.count == 1)
    }

    @Test func `who is postponed waits, whether the drain is paused, cancelled or ends in the canary`() {
        var driver = DrainDriver(Drain.Plan(members: 50, hosts: drainHosts(1), inFlight: 10, canary: 0.2))
        driver.interval = 1_000_000_000
        driver.tell(.begin)
        #expect(driver.inFlight.count == 1)
        #expect(driver.drain.waiting == 49)
        driver.tell(.pause)
        driver.now += 5_000_000_000
        driver.tell(.deadlinePassed)
        #expect(driver.started.count == 1)
        driver.tell(.resume)
        #expect(driver.started.count == 2)
        var cancelled = driver
        cancelled.tell(.cancel)
        cancelled.end()
        #expect(cancelled.drain.outcome == .cancelled)
        #expect(cancelled.drain.counts.moved == 2 && cancelled.drain.waiting == 48)
        driver.end(.failed(reason: "No."))
        #expect(driver.drain.outcome == .failed(reason: "No."))
        #expect(driver.drain.counts.failed + driver.drain.counts.moved + driver.drain.waiting == 50)
    }

    @Test func `in pause none begins, and afterwards they go on without a burst`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1), rate: 10, inFlight: 4))
        driver.tell(.begin)
        driver.tell(.pause)
        driver.now += 10_000_000_000
        driver.tell(.deadlinePassed)
        driver.end()
        #expect(driver.started.count == 1)
        driver.tell(.resume)
        #expect(driver.started.count == 2)
        driver.run()
        #expect(driver.drain.counts.moved == 100)
    }

    @Test func `a cancelled drain ends after those under way`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1), inFlight: 4))
        driver.tell(.begin)
        driver.tell(.cancel)
        #expect(driver.drain.outcome == nil)
        driver.end()
        #expect(driver.drain.outcome == .cancelled)
        #expect(driver.drain.counts.moved == 4)
        #expect(driver.drain.waiting == 96)
    }

    @Test func `the rest waits until the canary is established`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1), canary: 0.05, settle: 2_000_000_000))
        driver.tell(.begin)
        driver.end()
        #expect(driver.started.count == 5)
        #expect(driver.drain.state == .settling)
        driver.now += 1_999_999_999
        driver.tell(.deadlinePassed)
        #expect(driver.started.count == 5)
        driver.now += 1
        driver.tell(.deadlinePassed)
        #expect(driver.effects.contains(.examine([0, 1, 2, 3, 4])))
        driver.run()
        #expect(driver.drain.outcome == .completed)
        #expect(driver.drain.counts.moved == 100)
    }

    @Test func `a canary that does not stay established goes back, and the rest never moves`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1), canary: 0.05))
        driver.broken = "The host hung up."
        driver.tell(.begin)
        driver.run()
        #expect(driver.drain.outcome == .failed(reason: "The host hung up."))
        #expect(driver.started.count == 5)
        #expect(driver.sentBack == [0, 1, 2, 3, 4])
        #expect(driver.drain.counts.returned == 5)
        #expect(driver.steps == ["canary", "settling", "canary failed", "returning"])
    }

    @Test func `the first reset ends the canary, and those under way go back when they have moved`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1), inFlight: 3, canary: 0.1))
        driver.tell(.begin)
        let first = driver.inFlight.removeFirst()
        driver.tell(.ended(first.member, .moved(isProven: true)))
        driver.tell(.broken(first.member, reason: "Reset."))
        let begun = driver.started.count
        #expect(driver.drain.outcome == nil)
        driver.end()
        #expect(driver.started.count == begun)
        #expect(Set(driver.sentBack) == Set(0..<begun))
        #expect(driver.drain.outcome == .failed(reason: "Reset."))
    }

    @Test func `a migration that fails in the canary is the canary's failure`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1), inFlight: 1, canary: 0.05))
        driver.tell(.begin)
        driver.end()
        driver.end(.failed(reason: "No."))
        #expect(driver.drain.outcome == .failed(reason: "No."))
        #expect(driver.sentBack == [0])
    }

    @Test func `a session that has gone gives its place in canary and shares to the next`() {
        var driver = DrainDriver(Drain.Plan(members: 12, hosts: drainHosts(1, 1), canary: 0.25))
        driver.tell(.begin)
        #expect(driver.inFlight.count == 3)
        driver.end(.gone)
        #expect(driver.inFlight.count == 3)
        driver.run()
        #expect(driver.drain.outcome == .completed)
        #expect(driver.drain.counts.gone == 3)
        #expect(driver.drain.spread.counts.reduce(0, +) == 9)
        #expect(abs(driver.drain.spread.counts[0] - driver.drain.spread.counts[1]) == 1)
    }

    @Test func `a to-host that refuses is found out before anything moves`() {
        var driver = DrainDriver(Drain.Plan(members: 100, hosts: drainHosts(1, 1)))
        driver.refusals = [1: "It does not listen."]
        driver.tell(.begin)
        #expect(driver.drain.outcome == .failed(reason: "It does not listen."))
        #expect(driver.started.isEmpty)
    }

    @Test func `a to-host that refuses meanwhile stops the drain, and what has moved stays`() {
        var driver = DrainDriver(Drain.Plan(members: 1000, hosts: drainHosts(1), rate: 100))
        driver.tell(.begin)
        for _ in 0..<20 {
            driver.now = driver.drain.deadline ?? driver.now
            driver.tell(.deadlinePassed)
        }
        driver.refusals = [0: "It has stopped."]
        driver.run()
        #expect(driver.drain.outcome == .failed(reason: "It has stopped."))
        #expect(driver.started.count < 130)
        #expect(driver.sentBack.isEmpty)
        #expect(driver.drain.counts.moved == driver.started.count)
    }

    @Test func `the reasons are counted and a session that fails does not stop the others`() {
        var driver = DrainDriver(Drain.Plan(members: 10, hosts: drainHosts(1)))
        driver.tell(.begin)
        driver.run(.failed(reason: "No."))
        #expect(driver.drain.outcome == .completed)
        #expect(driver.drain.reasons == ["No.": 10])
        #expect(driver.drain.counts.failed == 10)
    }

    @Test(arguments: 0..<200) func `whatever happens in whatever order, it ends and counts everybody once`(seed: UInt64)
    {
        var random = SeededGenerator(state: seed)
        let members = Int.random(in: 1...60, using: &random)
        var driver = DrainDriver(
            Drain.Plan(
                members: members, hosts: drainHosts(3, 2, 1), rate: Bool.random(using: &random) ? 200 : nil,
                inFlight: Int.random(in: 1...9, using: &random), canary: Bool.random(using: &random) ? 0.2 : 0,
                settle: 50_000_000))
        driver.tell(.begin)
        for _ in 0..<400 {
            driver.now += UInt64.random(in: 0...30_000_000, using: &random)
            switch Int.random(in: 0...20, using: &random) {
            case 0: driver.tell(.pause)
            case 1, 2: driver.tell(.resume)
            case 3 where Int.random(in: 0...20, using: &random) == 0: driver.tell(.cancel)
            case 4 where Int.random(in: 0...20, using: &random) == 0:
                driver.tell(.broken(Int.random(in: 0..<members, using: &random), reason: "x"))
            case 5: driver.tell(.ended(Int.random(in: 0..<members, using: &random) + 1000, .gone))
            case 6...12: driver.tell(.deadlinePassed)
            default:
                guard let index = driver.inFlight.indices.randomElement(using: &random) else { continue }
                let member = driver.inFlight.remove(at: index).member
                let results: [Drain.Result] = [.moved(isProven: true), .moved(isProven: false), .gone]
                driver.tell(.ended(member, results.randomElement(using: &random) ?? .gone))
            }
        }
        driver.tell(.resume)
        driver.run()
        let counts = driver.drain.counts
        #expect(driver.drain.outcome != nil)
        #expect(counts.inFlight == 0)
        #expect(counts.moved + counts.gone + counts.failed + driver.drain.waiting == members)
        #expect(Set(driver.started.map(\.member)).count == driver.started.count)
        #expect(driver.effects.filter { if case .finish = $0 { true } else { false } }.count == 1)
    }
}

@Suite struct SpreadTests {
    @Test(arguments: [[1], [3, 1], [5, 3, 2], [1, 1, 1, 1, 1, 1, 1], [1000, 1], [7, 0x7fff]] as [[UInt32]])
    func `at every moment the counts are within one of the exact shares`(weights: [UInt32]) {
        var spread = Spread(weights: weights)
        let sum = Double(weights.reduce(0, +))
        for total in 1...2000 {
            _ = spread.assign()
            for (weight, count) in zip(weights, spread.counts) {
                #expect(abs(Double(weight) / sum * Double(total) - Double(count)) <= 1.0001)
            }
        }
    }

    @Test func `a place that is given back is taken next`() {
        var spread = Spread(weights: [1, 1])
        _ = (spread.assign(), spread.assign())
        spread.release(1)
        #expect(spread.assign() == 1)
        #expect(spread.counts == [1, 1])
    }
}
