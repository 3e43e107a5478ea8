// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Testing

@Suite struct DrainRecordTests {
    /// What would have been written down of a drain, when its daemon dies now.
    private func record(_ driver: DrainDriver, _ ended: [Int: Drain.Record.Turn], underWay: Bool) -> Drain.Record {
        var record = Drain.Record()
        record.turns = ended
        if underWay { record.underWay = Dictionary(driver.inFlight.map { ($0.member, $0.host) }) { $1 } }
        record.isPaused = driver.drain.isPaused
        record.isCancelled = driver.drain.isCancelled
        record.isCanaryOver = driver.drain.isCanaryOver
        record.stopReason = driver.drain.stopReason
        return record
    }

    private func turn(_ host: Int, _ result: Drain.Result = .moved(isProven: true), isBack: Bool? = nil)
        -> Drain.Record.Turn
    {
        Drain.Record.Turn(host: host, result: result, isBack: isBack)
    }

    @Test(arguments: 0..<300) func `whenever the daemon dies, everybody has one turn and the shares are exact`(
        seed: UInt64
    ) {
        var random = SeededGenerator(state: seed)
        let members = Int.random(in: 1...80, using: &random)
        let plan = Drain.Plan(
            members: members, hosts: drainHosts(3, 1), rate: Bool.random(using: &random) ? 300 : nil,
            inFlight: Int.random(in: 1...9, using: &random), canary: Bool.random(using: &random) ? 0.2 : 0,
            settle: 50_000_000)
        var driver = DrainDriver(plan)
        var ended: [Int: Drain.Record.Turn] = [:]
        driver.tell(.begin)
        for _ in 0..<Int.random(in: 0...300, using: &random) where driver.drain.outcome == nil {
            driver.now += UInt64.random(in: 0...10_000_000, using: &random)
            switch Int.random(in: 0...40, using: &random) {
            case 0:
                // What is under way was either past the point of no return, or is taken back.
                let goesOn = Bool.random(using: &random)
                var next = DrainDriver(plan)
                next.drain = Drain(plan, resuming: record(driver, ended, underWay: goesOn))
                next.now = driver.now
                next.inFlight = goesOn ? driver.inFlight : []
                #expect(next.drain.counts.moved == driver.drain.counts.moved)
                #expect(next.drain.waiting == driver.drain.waiting + (goesOn ? 0 : driver.inFlight.count))
                next.tell(.begin)
                driver = next
            case 1...20: driver.tell(.deadlinePassed)
            default:
                guard let index = driver.inFlight.indices.randomElement(using: &random) else { continue }
                let (member, host) = driver.inFlight.remove(at: index)
                let result = Drain.Result.moved(isProven: Bool.random(using: &random))
                #expect(ended[member] == nil)
                ended[member] = turn(host, result)
                driver.tell(.ended(member, result))
            }
        }
        driver.run()
        let counts = driver.drain.counts
        #expect(driver.drain.outcome == .completed)
        #expect(counts.moved == members && counts.failed == 0)
        #expect(abs(Double(driver.drain.spread.counts[0]) - Double(members) * 0.75) <= 1)
        #expect(driver.drain.spread.counts.reduce(0, +) == members)
    }

    @Test func `one that was paused or cancelled is so still`() {
        let plan = Drain.Plan(members: 20, hosts: drainHosts(1))
        var record = Drain.Record()
        record.turns = [0: turn(0), 1: turn(0, .failed(reason: "No.")), 3: turn(0, .gone)]
        record.isPaused = true
        var driver = DrainDriver(plan)
        driver.drain = Drain(plan, resuming: record)
        driver.tell(.begin)
        #expect(driver.started.isEmpty && driver.drain.reasons == ["No.": 1])
        driver.tell(.resume)
        // The one that was left out has its turn first.
        #expect(driver.started.map(\.member) == [2] + Array(4..<20))
        record.isPaused = false
        record.isCancelled = true
        driver = DrainDriver(plan)
        driver.drain = Drain(plan, resuming: record)
        driver.tell(.begin)
        #expect(driver.drain.outcome == .cancelled && driver.drain.waiting == 17)
    }

    @Test func `a canary goes on and settles anew`() {
        let plan = Drain.Plan(members: 100, hosts: drainHosts(1), canary: 0.05, settle: 2_000_000_000)
        var record = Drain.Record()
        record.turns = [0: turn(0), 1: turn(0), 2: turn(0)]
        record.underWay = [3: 0]
        var driver = DrainDriver(plan)
        driver.drain = Drain(plan, resuming: record)
        driver.inFlight = [(3, 0)]
        driver.tell(.begin)
        #expect(driver.started.map(\.member) == [4])
        driver.end()
        #expect(driver.drain.state == .settling)
        #expect(driver.drain.deadline == driver.now + 2_000_000_000)
        driver.broken = "The host hung up."
        driver.run()
        #expect(driver.drain.outcome == .failed(reason: "The host hung up."))
        #expect(Set(driver.sentBack) == [0, 1, 2, 3, 4] && driver.drain.counts.returned == 5)
    }

    @Test func `a canary that was on its way back goes back`() {
        let plan = Drain.Plan(members: 100, hosts: drainHosts(1), canary: 0.05)
        var record = Drain.Record()
        record.turns = [0: turn(0, isBack: true), 1: turn(0), 2: turn(0), 3: turn(0, isBack: false)]
        record.underWay = [4: 0]
        record.returning = [2]
        record.stopReason = "Reset."
        var driver = DrainDriver(plan)
        driver.drain = Drain(plan, resuming: record)
        driver.tell(.begin)
        #expect(driver.sentBack == [1])
        driver.tell(.ended(4, .moved(isProven: true)))
        #expect(driver.sentBack == [1, 4])
        #expect(driver.drain.outcome == nil)
        driver.tell(.returned(2, isBack: true))
        #expect(driver.drain.outcome == .failed(reason: "Reset."))
        #expect(driver.drain.counts.returned == 4 && driver.drain.counts.moved == 5 && driver.started.isEmpty)
    }
}
