// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// When and how a migration ends by itself. At least one of the two times is there.
public struct RequestedLifetime: Hashable, Sendable {
    /// Seconds from the switch until the session leaves the to-host; nil for never.
    public var seconds: Double?
    /// Where it goes then; nil for home.
    public var then: Endpoint?
    /// Seconds from the switch within which the migration has to be confirmed, or the session goes home; nil when it
    /// need not be confirmed.
    public var confirmWithin: Double?

    public init(seconds: Double?, then: Endpoint?, confirmWithin: Double?) {
        self.seconds = seconds
        self.then = then
        self.confirmWithin = confirmWithin
    }
}

/// A switched migration that ends by itself. Times are seconds since 1970, so that they outlive a process.
public struct StandingLifetime: Hashable, Sendable {
    public let migration: UInt64
    public var session: SessionKey
    public var endsAt: Double?
    public var then: Endpoint?
    public var confirmBy: Double?

    public init(migration: UInt64, session: SessionKey, endsAt: Double?, then: Endpoint?, confirmBy: Double?) {
        self.migration = migration
        self.session = session
        self.endsAt = endsAt
        self.then = then
        self.confirmBy = confirmBy
    }

    /// What begins at the switch.
    public init(_ requested: RequestedLifetime, migration: UInt64, session: SessionKey, switchedAt: Double) {
        self.init(
            migration: migration, session: session, endsAt: requested.seconds.map { switchedAt + $0 },
            then: requested.then, confirmBy: requested.confirmWithin.map { switchedAt + $0 })
    }

    /// What happens next, and when; nil when nothing does.
    public var next: (at: Double, end: LifetimeEnd)? {
        let lifetime = endsAt.map { (at: $0, end: then.map(LifetimeEnd.onward) ?? .over) }
        guard let confirmBy else { return lifetime }
        if let lifetime, lifetime.at < confirmBy { return lifetime }
        return (confirmBy, .unconfirmed)
    }

    /// Whether there is still something to wait for.
    public var isOver: Bool { endsAt == nil && confirmBy == nil }
}

/// Why a session leaves its to-host by itself.
public enum LifetimeEnd: Hashable, Sendable {
    /// The lifetime is over: home.
    case over
    /// The lifetime is over: to the next host.
    case onward(Endpoint)
    /// Nobody has confirmed the migration: home.
    case unconfirmed

    /// The to-host of the migration that follows; nil for home.
    public var host: Endpoint? {
        if case .onward(let host) = self { host } else { nil }
    }
}
