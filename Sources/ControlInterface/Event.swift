// SPDX-License-Identifier: GPL-3.0-or-later

/// One thing that has happened, as every consumer of the event stream gets it.
public struct Event: Codable, Hashable, Sendable {
    /// What an event is about.
    @frozen
    public enum Kind: String, Codable, Hashable, Sendable, CaseIterable {
        /// A migration has come to a step of its timeline.
        case migrationStep = "migration.step"
        /// A migration has its outcome.
        case migrationFinished = "migration.finished"
        /// A session has followed its client to another port.
        case sessionFollowed = "session.followed"
        /// A drain has come further, was paused, resumed or cancelled.
        case drainProgress = "drain.progress"
        /// A drain has its outcome.
        case drainFinished = "drain.finished"
    }

    /// Rises by one with each event, also over restarts of the daemon.
    public var id: UInt64
    /// Seconds since 1970.
    public var at: Double
    public var kind: Kind
    /// The migration that this is about, if one.
    public var migration: UInt64?
    /// The drain that this is about, or that the migration is part of.
    public var drain: UInt64?
    /// The service of the migration or the session that this is about.
    public var service: String?
    public var step: String
    public var detail: String?

    public init(
        id: UInt64, at: Double, kind: Kind, migration: UInt64? = nil, drain: UInt64? = nil,
        service: String? = nil, step: String, detail: String? = nil
    ) {
        self.id = id
        self.at = at
        self.kind = kind
        self.migration = migration
        self.drain = drain
        self.service = service
        self.step = step
        self.detail = detail
    }
}

/// The body of a webhook's POST: events in their order, none twice.
public struct EventDelivery: Codable, Hashable, Sendable {
    /// The webhook's name in the configuration.
    public var webhook: String
    public var events: [Event]
    /// What was lost before the first of them; nil: nothing.
    public var missed: MissedEvents?

    public init(webhook: String, events: [Event], missed: MissedEvents? = nil) {
        self.webhook = webhook
        self.events = events
        self.missed = missed
    }
}

/// Events that are kept no longer and were never delivered. Some of these ids may never have been given out.
public struct MissedEvents: Codable, Hashable, Sendable {
    /// The first id of the gap, and the last one.
    public var first: UInt64
    public var last: UInt64

    public init(first: UInt64, last: UInt64) {
        self.first = first
        self.last = last
    }
}
