// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Logging

/// A place in the log of events, from which a consumer goes on.
struct EventFeed: Sendable {
    let coordinator: Coordinator
    let filter: EventFilter
    /// The last event that the consumer has seen.
    var last: UInt64

    /// The next events; none when `patience` (nanoseconds) is over. nil when some are gone: `coordinator.eventsGone`
    /// says so.
    mutating func next(limit: Int, patience: UInt64) async -> [Event]? {
        guard
            let batch = await coordinator.events(after: last, matching: filter, limit: limit, patience: patience)
        else { return nil }
        last = batch.upTo
        return batch.events
    }
}

extension Coordinator {
    nonisolated var eventRoutes: [ControlRoute] {
        [
            ControlRoute("GET", "/v1/events", query: ["after", "migration", "drain"]) { request in
                var filter = EventFilter()
                filter.migration = try request.number("migration")
                filter.drain = try request.number("drain")
                // A browser's EventSource, and nfqmigctl, resume with the header; it knows better than the address.
                let after: UInt64?
                if let text = request.headers["last-event-id"], !text.isEmpty {
                    guard let number = ControlRequest.number(text) else {
                        throw Problem(kind: .malformedRequest, detail: "Last-Event-ID takes the id of an event.")
                    }
                    after = number
                } else {
                    after = try request.number("after")
                }
                return .events(try await self.feed(after: after, matching: filter))
            }
        ]
    }

    /// A feed of what happens after event `id`; of all that is kept when `id` is 0, and from now on when it is nil. Throws a
    /// `Problem` when something after it is gone.
    func feed(after id: UInt64?, matching filter: EventFilter) throws(Problem) -> EventFeed {
        let last = id == 0 ? eventLog.oldestID - 1 : id ?? eventLog.lastID
        guard eventLog.keepsAll(after: last) else { throw eventsGone(after: last) }
        return EventFeed(coordinator: self, filter: filter, last: last)
    }

    /// The refusal of a consumer that comes too late.
    func eventsGone(after id: UInt64) -> Problem {
        let reason =
            id > eventLog.lastID
            ? "There is no event \(id) yet"
            : "Events after \(id) are gone, because there were too many since or the daemon has started anew"
        var problem = Problem(
            kind: .eventsGone,
            detail: "\(reason): the oldest one kept is \(eventLog.oldestID); list the migrations and go on from there.")
        problem.oldest = eventLog.oldestID
        return problem
    }

    func events(
        after id: UInt64, matching filter: EventFilter, limit: Int, patience: UInt64
    ) async -> (events: [Event], upTo: UInt64)? {
        let deadline = EventLoop.now + patience
        var last = id
        while true {
            guard let batch = eventLog.batch(after: last, matching: filter, limit: limit) else { return nil }
            last = batch.upTo
            if !batch.events.isEmpty || EventLoop.now >= deadline || Task.isCancelled || isStopping {
                return (batch.events, last)
            }
            let waiter = Waiter()
            eventLog.add(waiter)
            let timer = loop.schedule(at: deadline) { waiter.resume() }
            await waiter.wait()
            loop.cancel(timer)
            eventLog.remove(waiter)
        }
    }

    /// Takes up the numbers of events where the last process may have been. After an orderly end that is exact, and a
    /// consumer that has seen everything resumes; after a crash a gap is left, so that no number is given out twice.
    func beginEvents() throws {
        eventLog.begin(after: try journal.counter("event")) { last in
            do {
                try self.journal.setCounter("event", to: last)
            } catch {
                self.logger.error("\(error)")
            }
        }
    }

    /// Ends all waiting for outcomes and events: the daemon is about to end.
    func endWaiting() {
        isStopping = true
        eventLog.wakeAll()
        for running in migrations.values { running.resumeWaiters(loop) }
    }

    func endEvents() {
        isStopping = true
        do {
            try journal.setCounter("event", to: eventLog.lastID)
        } catch {
            logger.error("\(error)")
        }
        eventLog.wakeAll()
    }
}

extension ControlRequest {
    /// A whole number of the query; nil when it is absent.
    func number(_ name: String) throws(Problem) -> UInt64? {
        guard let text = query[name] else { return nil }
        guard let number = Self.number(text) else {
            throw Problem(kind: .malformedRequest, detail: "\(name) takes a whole number up to 2^53 - 1.")
        }
        return number
    }

    /// A whole number that every JSON reader holds exactly (RFC 8259 section 6).
    static func number(_ text: String) -> UInt64? {
        UInt64(text).flatMap { $0 < 1 << 53 ? $0 : nil }
    }
}
