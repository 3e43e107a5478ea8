// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Daemon
import Testing

@Suite struct EventLogTests {
    @Test func `a filter lets through what all of its parts let through`() throws {
        let log = EventLog()
        log.publish(.migrationStep, "requested", migration: 1, service: "redis")
        log.publish(.migrationFinished, "finished", migration: 1, service: "redis")
        log.publish(.migrationFinished, "finished", migration: 2)
        log.publish(.drainFinished, "finished", drain: 3)
        func ids(_ filter: EventFilter) throws -> [UInt64] {
            try #require(log.batch(after: 0, matching: filter, limit: 10)).events.map(\.id)
        }
        #expect(try ids(EventFilter()) == [1, 2, 3, 4])
        #expect(try ids(EventFilter(service: "redis")) == [1, 2])
        #expect(try ids(EventFilter(service: "redis", kinds: [.migrationFinished, .drainFinished])) == [2])
        #expect(try ids(EventFilter(kinds: [.migrationFinished, .drainFinished])) == [2, 3, 4])
        #expect(try ids(EventFilter(service: "bulk")) == [])
        #expect(try #require(log.batch(after: 0, matching: EventFilter(service: "bulk"), limit: 1)).upTo == 4)
    }

    @Test func `a consumer that falls out of what is kept is told`() throws {
        let log = EventLog()
        for _ in 0..<(2 * EventLog.capacity + 1) { log.publish(.migrationStep, "x") }
        #expect(log.oldestID == UInt64(EventLog.capacity) + 1)
        #expect(log.batch(after: log.oldestID - 2, matching: EventFilter(), limit: 1) == nil)
        #expect(
            try #require(log.batch(after: log.oldestID - 1, matching: EventFilter(), limit: 1)).upTo == log.oldestID)
    }
}
