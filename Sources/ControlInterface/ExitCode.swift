// SPDX-License-Identifier: GPL-3.0-or-later

/// What `nfqmigctl` ends with, for scripts.
public enum ExitCode: Int32, Sendable, CaseIterable {
    /// Done, and the from-host's reset is proven.
    case done = 0
    /// Failed; nothing has changed on the network.
    case failed = 1
    /// The request itself is wrong: a malformed address, mixed families.
    case usage = 2
    /// No such connection, session or migration.
    case unknown = 3
    /// Done, but the from-host's reset is unproven.
    case unproven = 4
    /// Refused by policy.
    case refused = 5
    /// The daemon cannot be reached.
    case unreachable = 6
    /// The time for waiting is over; the migration goes on.
    case timedOut = 7
}

/// The kinds of refusal, each with its HTTP status and the exit code it becomes.
public enum ProblemKind: String, Sendable, CaseIterable {
    case malformedRequest = "malformed-request"
    case unknownConnection = "unknown-connection"
    case unknownMigration = "unknown-migration"
    case unknownDrain = "unknown-drain"
    case orderUnavailable = "order-unavailable"
    case unknownPath = "unknown-path"
    case alreadyThere = "already-there"
    case otherScopeBound = "other-scope-bound"
    case hostServesOtherHome = "host-serves-other-home"
    case hostNotListening = "host-not-listening"
    case kernelRefused = "kernel-refused"
    case superseded = "superseded"
    case interrupted = "interrupted"

    public var status: Int {
        switch self {
        case .malformedRequest: 400
        case .unknownConnection, .unknownMigration, .unknownDrain, .unknownPath: 404
        case .alreadyThere, .otherScopeBound, .hostServesOtherHome, .superseded, .orderUnavailable: 409
        case .hostNotListening: 422
        case .kernelRefused: 500
        case .interrupted: 503
        }
    }

    public var exitCode: ExitCode {
        switch self {
        case .malformedRequest: .usage
        case .unknownConnection, .unknownMigration, .unknownDrain, .unknownPath: .unknown
        case .alreadyThere, .otherScopeBound, .hostServesOtherHome, .hostNotListening, .kernelRefused, .superseded,
            .interrupted, .orderUnavailable:
            .failed
        }
    }

    public var title: String {
        switch self {
        case .malformedRequest: "The request cannot be understood"
        case .unknownConnection: "No such connection or session"
        case .unknownMigration: "No such migration"
        case .unknownDrain: "No such drain"
        case .orderUnavailable: "The order cannot be had"
        case .unknownPath: "No such resource"
        case .alreadyThere: "The session is there already"
        case .otherScopeBound: "A binding of another scope is in the way"
        case .hostServesOtherHome: "The to-host serves this client for another home"
        case .hostNotListening: "The to-host does not accept connections"
        case .kernelRefused: "The kernel refused the change"
        case .superseded: "A newer migration took over"
        case .interrupted: "The daemon stopped meanwhile"
        }
    }
}
