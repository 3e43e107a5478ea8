// SPDX-License-Identifier: GPL-3.0-or-later

// What the daemon and its clients say to each other: JSON over HTTP on a UNIX socket, version 1. Endpoints are written
// `192.0.2.1:80` or `[2001:db8::1]:80`, addresses without brackets; times are seconds since 1970 unless named otherwise.

/// The version of the JSON documents; part of every path.
public let interfaceVersion = 1

/// Where the daemon listens unless told otherwise.
public let defaultSocketPath = "/run/nfqmigd/control.sock"

/// `POST /v1/migrations`: move a session.
public struct MigrationOrder: Codable, Hashable, Sendable {
    /// The number of a session that is known, in place of `client`, `from` and `scope`.
    public var session: UInt64?
    /// The client's address, with its port for one connection, without for all its connections to that home; `any`, or nil
    /// with scope `service`, for every client.
    public var client: String?
    /// The home: the endpoint that the client believes it talks to.
    public var from: String?
    /// The to-host: an address (the home's port is kept), an endpoint, or an address with a range of ports, of which one that
    /// listens and is free is chosen (`192.0.2.2:7000-7009`); nil or `home` for the way home.
    public var to: String?
    /// In place of `to`: the exact translation of one connection.
    public var translation: StatedTranslation?
    /// `connection`, `client` or `service`; nil lets `client` decide.
    public var scope: String?
    /// `kernel` or `queue`; nil for what the daemon is configured for.
    public var datapath: String?
    /// Whether the client is left alone until it speaks.
    public var passive: Bool?
    /// Seconds from the switch until the session leaves the to-host by itself; nil for never.
    public var lifetime: Double?
    /// Where it goes then, as in `to`; nil for home.
    public var then: String?
    /// Seconds from the switch within which the migration has to be confirmed, or the session goes home.
    public var confirmWithin: Double?

    public init(
        session: UInt64? = nil, client: String? = nil, from: String? = nil, to: String?, scope: String? = nil,
        datapath: String? = nil, passive: Bool? = nil
    ) {
        self.session = session
        self.client = client
        self.from = from
        self.to = to
        self.scope = scope
        self.datapath = datapath
        self.passive = passive
    }
}

/// What the segments client → home of a connection become.
public struct StatedTranslation: Codable, Hashable, Sendable {
    /// The client's endpoint as the to-host is to see it: its own address, with any port.
    public var source: String
    /// The to-host's endpoint.
    public var destination: String

    public init(source: String, destination: String) {
        self.source = source
        self.destination = destination
    }
}

/// One step of a migration.
public struct TimelineEntry: Codable, Hashable, Sendable {
    /// Milliseconds since the request.
    public var at: Double
    public var step: String
    public var detail: String?

    public init(at: Double, step: String, detail: String? = nil) {
        self.at = at
        self.step = step
        self.detail = detail
    }
}

/// One old connection of a migration and what became of its two ends.
public struct ConnectionReport: Codable, Hashable, Sendable {
    /// Client → home, as the client sees it.
    public var clientSide: String
    /// Client → from-host, as the servers' side of the wire has it.
    public var serverSide: String
    /// `proven`, `unproven`, or nil while the handshake runs.
    public var fromHostReset: String?
    /// `proven`, `unproven`, `reconnected`, or nil.
    public var clientReset: String?
    /// Challenges and RSTs sent to the from-host and the client.
    public var challenges: Int
    public var resets: Int

    public init(
        clientSide: String, serverSide: String, fromHostReset: String?, clientReset: String?, challenges: Int,
        resets: Int
    ) {
        self.clientSide = clientSide
        self.serverSide = serverSide
        self.fromHostReset = fromHostReset
        self.clientReset = clientReset
        self.challenges = challenges
        self.resets = resets
    }
}

/// `GET /v1/migrations/{id}`: a migration, running or ended.
public struct MigrationReport: Codable, Hashable, Sendable {
    public var id: UInt64
    /// The session's number.
    public var session: UInt64
    /// As it was asked for.
    public var client: String
    public var home: String
    public var scope: String
    public var datapath: String
    public var passive: Bool
    public var from: String
    public var to: String
    /// `proven`, `unproven`, `failed`, `superseded`, or nil while it runs.
    public var outcome: String?
    /// Why it failed, one sentence.
    public var reason: String?
    /// The exit code that a command waiting for this outcome ends with.
    public var exitCode: Int32?
    public var requestedAt: Double
    /// When the kernel acknowledged the switch: from then on nothing of the client reaches the from-host.
    public var switchedAt: Double?
    public var finishedAt: Double?
    /// When the migration ends by itself, and where the session goes then (nil: home).
    public var endsAt: Double?
    public var then: String?
    /// When the session goes home unless the migration is confirmed.
    public var confirmBy: Double?
    public var connections: [ConnectionReport]
    /// New connections of the client that the gateway has seen, client → home.
    public var reconnected: [String]
    public var timeline: [TimelineEntry]

    public init(
        id: UInt64, session: UInt64, client: String, home: String, scope: String, datapath: String, passive: Bool,
        from: String, to: String, requestedAt: Double
    ) {
        self.id = id
        self.session = session
        self.client = client
        self.home = home
        self.scope = scope
        self.datapath = datapath
        self.passive = passive
        self.from = from
        self.to = to
        self.requestedAt = requestedAt
        connections = []
        reconnected = []
        timeline = []
    }
}

/// `POST /v1/migrations/{id}/confirm`: a migration that stays.
public struct MigrationConfirmation: Codable, Hashable, Sendable {
    public var id: UInt64
    public var client: String
    public var home: String
    public var confirmedAt: Double
    /// When the migration ends by itself all the same.
    public var endsAt: Double?

    public init(id: UInt64, client: String, home: String, confirmedAt: Double, endsAt: Double?) {
        self.id = id
        self.client = client
        self.home = home
        self.confirmedAt = confirmedAt
        self.endsAt = endsAt
    }
}

/// `GET /v1/connections`: a TCP connection that crosses the gateway.
public struct ConnectionSummary: Codable, Hashable, Sendable {
    public var client: String
    /// What the client believes it talks to.
    public var home: String
    /// Who answers, after NAT.
    public var host: String
    public var state: String

    public init(client: String, home: String, host: String, state: String) {
        self.client = client
        self.home = home
        self.host = host
        self.state = state
    }
}

/// `GET /v1/sessions`: a session that is bound, in migration, or under guard.
public struct SessionSummary: Codable, Hashable, Sendable {
    /// The session's number, which stays when its client comes back from another port.
    public var id: UInt64
    /// Its client's address, with the present port where it is about one connection.
    public var client: String
    public var home: String
    public var host: String
    public var scope: String
    /// nil when home serves the session.
    public var datapath: String?
    /// The client's port as the host sees it, where that is not its own and the kernel has not chosen it.
    public var sourcePort: UInt16?
    /// How many four-tuples are still stopped or guarded.
    public var transits: Int
    /// The latest migration.
    public var migration: UInt64?

    public init(
        id: UInt64, client: String, home: String, host: String, scope: String, datapath: String?, transits: Int,
        migration: UInt64?
    ) {
        self.id = id
        self.client = client
        self.home = home
        self.host = host
        self.scope = scope
        self.datapath = datapath
        self.transits = transits
        self.migration = migration
    }
}

/// The counters of one queue and its thread since the daemon's start.
public struct QueueCounters: Codable, Hashable, Sendable {
    public var queue: Int
    public var packets: UInt64
    public var octets: UInt64
    public var accepted: UInt64
    public var rewritten: UInt64
    public var dropped: UInt64
    public var malformed: UInt64
    public var truncated: UInt64
    /// Times that the kernel had no room for us (ENOBUFS).
    public var overruns: UInt64
    /// Verdicts for packets that were gone (ENOENT).
    public var verdictErrors: UInt64

    public init(
        queue: Int, packets: UInt64, octets: UInt64, accepted: UInt64, rewritten: UInt64, dropped: UInt64,
        malformed: UInt64, truncated: UInt64, overruns: UInt64, verdictErrors: UInt64
    ) {
        self.queue = queue
        self.packets = packets
        self.octets = octets
        self.accepted = accepted
        self.rewritten = rewritten
        self.dropped = dropped
        self.malformed = malformed
        self.truncated = truncated
        self.overruns = overruns
        self.verdictErrors = verdictErrors
    }
}

/// What is known of how hosts answer the connections that user space carries.
public struct ReplyCounters: Codable, Hashable, Sendable {
    /// Replies that the sessions know of now, of both families.
    public var learnt: Int
    /// How many of each family the kernel has room for. Beyond, it does not divert them.
    public var size: Int
    /// Replies that were let go since the daemon's start because their connections were over.
    public var ended: UInt64

    public init(learnt: Int, size: Int, ended: UInt64) {
        self.learnt = learnt
        self.size = size
        self.ended = ended
    }
}

public struct ConnectionList: Codable, Hashable, Sendable {
    public var connections: [ConnectionSummary]
    /// What `after` of the next page is; nil on the last one.
    public var next: String?
    public init(connections: [ConnectionSummary]) { self.connections = connections }
}

public struct SessionList: Codable, Hashable, Sendable {
    public var sessions: [SessionSummary]
    /// What `after` of the next page is; nil on the last one.
    public var next: String?
    public init(sessions: [SessionSummary]) { self.sessions = sessions }
}

public struct MigrationList: Codable, Hashable, Sendable {
    public var migrations: [MigrationReport]
    /// What `after` of the next page is; nil on the last one.
    public var next: String?
    public init(migrations: [MigrationReport]) { self.migrations = migrations }
}

public struct CounterList: Codable, Hashable, Sendable {
    public var queues: [QueueCounters]
    public var replies: ReplyCounters
    public init(queues: [QueueCounters], replies: ReplyCounters) {
        self.queues = queues
        self.replies = replies
    }
}

/// The body of every refusal (RFC 9457): `status` is HTTP's, `exitCode` the command's.
public struct Problem: Codable, Hashable, Sendable, Error {
    public var type: String
    public var title: String
    public var status: Int
    /// One sentence that a person can act on.
    public var detail: String
    public var exitCode: Int32
    /// Of `events-gone`: the id of the oldest event that is kept.
    public var oldest: UInt64?

    public init(kind: ProblemKind, detail: String) {
        type = "urn:nfqmigd:\(kind.rawValue)"
        title = kind.title
        status = kind.status
        self.detail = detail
        exitCode = kind.exitCode.rawValue
    }
}
