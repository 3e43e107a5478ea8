// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface

/// What has happened, in order, as far back as it is kept. The coordinator publishes, consumers follow.
final class EventLog {
    /// How many events are kept.
    static let capacity = 65_536

    private(set) var events: [Event] = []
    private var lastID: UInt64 = 0

    /// Adds an event.
    func publish(
        _ kind: Event.Kind, _ step: String, _ detail: String? = nil, migration: UInt64? = nil, drain: UInt64? = nil
    ) {
        lastID += 1
        if events.count >= 2 * Self.capacity { events.removeFirst(Self.capacity) }
        events.append(
            Event(
                id: lastID, at: EventLoop.wallClock, kind: kind, migration: migration, drain: drain, step: step,
                detail: detail))
    }
}
