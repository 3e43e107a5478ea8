// SPDX-License-Identifier: GPL-3.0-or-later

/// A to-host of a drain and its share.
public struct DrainHost: Codable, Hashable, Sendable {
    /// An address (each session keeps its home's port), an endpoint, or `home`.
    public var host: String
    /// How many sessions go there for each that goes to a host of weight 1; nil for 1.
    public var weight: UInt32?
    /// In reports: the sessions that are there or on their way.
    public var sessions: Int?

    public init(host: String, weight: UInt32? = nil, sessions: Int? = nil) {
        self.host = host
        self.weight = weight
        self.sessions = sessions
    }
}

/// A session as a drain's list names it.
public struct DrainSession: Codable, Hashable, Sendable {
    /// The client's address, with its port for one connection, without for all its connections to that home.
    public var client: String
    /// The home: the endpoint that the client believes it talks to.
    public var home: String
    /// In reports: the to-host.
    public var to: String?

    public init(client: String, home: String, to: String? = nil) {
        self.client = client
        self.home = home
        self.to = to
    }
}

/// `POST /v1/drains`: move many sessions away from a host.
public struct DrainOrder: Codable, Hashable, Sendable {
    /// The host that serves the sessions now, or their home if that serves them: an address or an endpoint. nil, with a
    /// `service`, for whoever serves them.
    public var from: String?
    /// Only sessions of this service of the configuration; nil for those of all.
    public var service: String?
    /// One host or several, with weights; `home` alone for the way home.
    public var to: [DrainHost]
    /// Only these sessions; nil for all that `from` serves.
    public var sessions: [DrainSession]?
    /// Only clients of this prefix: `192.0.2.0/24`, `2001:db8::/32` or an address.
    public var client: String?
    /// No more sessions than this.
    public var atMost: Int?
    /// `oldest`, `newest` or `busiest` first; nil for no particular order.
    public var order: String?
    /// Migrations that may begin in a second; nil for as many as `inFlight` allows.
    public var rate: Double?
    /// Migrations that may be under way at once; nil for 128.
    public var inFlight: Int?
    /// The share of the sessions that must succeed before the rest goes: more than 0, at most 1; nil for none.
    public var canary: Double?
    /// Seconds that the canary's new connections must stay established; nil for 2.
    public var settle: Double?
    /// `connection` or `client`, for sessions that are not bound yet; nil for `connection`.
    public var scope: String?
    /// `kernel` or `queue`; nil for what the daemon is configured for.
    public var datapath: String?
    /// Whether clients are left alone until they speak.
    public var passive: Bool?
    /// Whether only to say which sessions would go where.
    public var dryRun: Bool?

    public init(from: String?, service: String? = nil, to: [DrainHost]) {
        self.from = from
        self.service = service
        self.to = to
    }
}

/// Why sessions of a drain stayed where they were.
public struct DrainFailure: Codable, Hashable, Sendable {
    /// One sentence.
    public var reason: String
    public var sessions: Int

    public init(reason: String, sessions: Int) {
        self.reason = reason
        self.sessions = sessions
    }
}

/// `GET /v1/drains/{id}`: a drain, running or ended.
public struct DrainReport: Codable, Hashable, Sendable {
    /// Migrations and drains are numbered together. 0 for a dry run.
    public var id: UInt64
    /// As the order named them.
    public var from: String?
    public var service: String?
    public var to: [DrainHost]
    /// `checking`, `canary`, `settling`, `moving`, `returning` or `finished`.
    public var state: String
    public var isPaused: Bool
    /// The sessions selected when it began: those below together.
    public var total: Int
    /// Those that have not had their turn.
    public var waiting: Int
    public var inFlight: Int
    public var moved: Int
    /// Those that had nothing to move any more.
    public var gone: Int
    /// Those that stayed where they were.
    public var failed: Int
    /// Those of the moved whose from-host's reset is unproven.
    public var unproven: Int
    /// Those of the moved that went back because the canary failed.
    public var returned: Int
    /// How many had to succeed first.
    public var canary: Int
    public var rate: Double?
    /// `completed`, `failed`, `cancelled`, or nil while it runs.
    public var outcome: String?
    /// Why it failed, one sentence.
    public var reason: String?
    public var failures: [DrainFailure]
    /// The exit code that a command waiting for this outcome ends with.
    public var exitCode: Int32?
    public var requestedAt: Double
    public var finishedAt: Double?
    /// In the answer to a dry run only: which sessions would go where.
    public var sessions: [DrainSession]?

    public init(
        id: UInt64, from: String?, service: String? = nil, to: [DrainHost], state: String, total: Int,
        requestedAt: Double
    ) {
        self.id = id
        self.from = from
        self.service = service
        self.to = to
        self.state = state
        isPaused = false
        self.total = total
        waiting = total
        inFlight = 0
        moved = 0
        gone = 0
        failed = 0
        unproven = 0
        returned = 0
        canary = 0
        failures = []
        self.requestedAt = requestedAt
    }
}

public struct DrainList: Codable, Hashable, Sendable {
    public var drains: [DrainReport]
    public init(drains: [DrainReport]) { self.drains = drains }
}
