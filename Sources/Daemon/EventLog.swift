// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface

/// What has happened, in order, as far back as it is kept. The coordinator publishes; consumers follow, each at its own
/// pace with nothing but the number of the last event it has seen, so that a slow one costs nothing and holds nobody up.
package final class EventLog {
    /// How many events are kept at least, once there are so many.
    package static let capacity = 65_536
    /// How many numbers are set aside in the journal at once.
    package static let reservation: UInt64 = 65_536

    package private(set) var events: [Event] = []
    package private(set) var lastID: UInt64 = 0
    /// The last number that the journal has set aside.
    private var reserved: UInt64 = 0
    private var reserve: ((UInt64) -> Void)?
    /// Consumers that have seen everything.
    private var waiters: [Waiter] = []

    package init() {}

    /// Goes on behind `last`, the last number that an earlier process may have given out. `reserve` writes down the last
    /// number that this one may give out, before it does.
    package func begin(after last: UInt64, reserve: @escaping (UInt64) -> Void) {
        lastID = last
        reserved = last
        self.reserve = reserve
    }

    /// The number of the oldest event that is kept; when there is none, of the next one.
    package var oldestID: UInt64 { events.first?.id ?? lastID + 1 }

    /// Adds an event.
    package func publish(
        _ kind: Event.Kind, _ step: String, _ detail: String? = nil, migration: UInt64? = nil, drain: UInt64? = nil,
        service: String? = nil
    ) {
        lastID += 1
        if lastID > reserved, let reserve {
            reserved = lastID + Self.reservation
            reserve(reserved)
        }
        if events.count >= 2 * Self.capacity { events.removeFirst(Self.capacity) }
        events.append(
            Event(
                id: lastID, at: EventLoop.wallClock, kind: kind, migration: migration, drain: drain, service: service,
                step: step, detail: detail))
        wakeAll()
    }

    /// Whether everything after `id` is still here.
    package func keepsAll(after id: UInt64) -> Bool { id <= lastID && id + 1 >= oldestID }

    /// The events after `id` that `filter` lets through, `limit` at most, and the number up to which that is everything.
    /// nil when some of them are gone.
    package func batch(
        after id: UInt64, matching filter: EventFilter, limit: Int
    ) -> (events: [Event], upTo: UInt64)? {
        guard keepsAll(after: id) else { return nil }
        guard id < lastID else { return ([], id) }
        var matching: [Event] = []
        for event in events[Int(id + 1 - oldestID)...] where filter.passes(event) {
            matching.append(event)
            if matching.count == limit { return (matching, event.id) }
        }
        return (matching, lastID)
    }

    func add(_ waiter: Waiter) { waiters.append(waiter) }

    func remove(_ waiter: Waiter) { waiters.removeAll { $0 === waiter } }

    func wakeAll() {
        guard !waiters.isEmpty else { return }
        for waiter in waiters { waiter.resume() }
        waiters.removeAll()
    }
}

/// Which events a consumer wants; what is nil does not matter.
package struct EventFilter: Hashable, Sendable {
    package var migration: UInt64?
    package var drain: UInt64?
    package var service: String?
    /// Empty: every kind.
    package var kinds: Set<Event.Kind> = []

    package init(
        migration: UInt64? = nil, drain: UInt64? = nil, service: String? = nil, kinds: Set<Event.Kind> = []
    ) {
        self.migration = migration
        self.drain = drain
        self.service = service
        self.kinds = kinds
    }

    package func passes(_ event: Event) -> Bool {
        (migration == nil || event.migration == migration) && (drain == nil || event.drain == drain)
            && (service == nil || event.service == service) && (kinds.isEmpty || kinds.contains(event.kind))
    }
}
