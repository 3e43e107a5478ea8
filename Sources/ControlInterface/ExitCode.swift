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
    case sourcePortTaken = "source-port-taken"
    case hostNotListening = "host-not-listening"
    case kernelRefused = "kernel-refused"
    case superseded = "superseded"
    case interrupted = "interrupted"
    case methodNotAllowed = "method-not-allowed"
    case requestTimeout = "request-timeout"
    case eventsGone = "events-gone"
    case contentTooLarge = "content-too-large"
    case unsupportedMediaType = "unsupported-media-type"
    case idempotencyKeyReused = "idempotency-key-reused"
    case headersTooLarge = "headers-too-large"
    case internalError = "internal-error"
    case tooManyConnections = "too-many-connections"
    case refusedByPolicy = "refused-by-policy"
    case rateExceeded = "rate-exceeded"
    case notPrepared = "not-prepared"
    case notAwaitingConfirmation = "not-awaiting-confirmation"

    public var status: Int {
        switch self {
        case .malformedRequest: 400
        case .refusedByPolicy: 403
        case .unknownConnection, .unknownMigration, .unknownDrain, .unknownPath: 404
        case .alreadyThere, .otherScopeBound, .hostServesOtherHome, .sourcePortTaken, .superseded,
            .notAwaitingConfirmation, .orderUnavailable:
            409
        case .hostNotListening, .notPrepared: 422
        case .rateExceeded: 429
        case .kernelRefused: 500
        case .interrupted: 503
        case .methodNotAllowed: 405
        case .requestTimeout: 408
        case .eventsGone: 410
        case .contentTooLarge: 413
        case .unsupportedMediaType: 415
        case .idempotencyKeyReused: 422
        case .headersTooLarge: 431
        case .internalError: 500
        case .tooManyConnections: 503
        }
    }

    public var exitCode: ExitCode {
        switch self {
        case .malformedRequest: .usage
        case .unknownConnection, .unknownMigration, .unknownDrain, .unknownPath: .unknown
        case .alreadyThere, .otherScopeBound, .hostServesOtherHome, .sourcePortTaken, .hostNotListening,
            .kernelRefused, .superseded, .interrupted, .notPrepared, .notAwaitingConfirmation, .orderUnavailable:
            .failed
        case .methodNotAllowed, .contentTooLarge, .unsupportedMediaType, .idempotencyKeyReused, .headersTooLarge:
            .usage
        case .requestTimeout, .eventsGone, .internalError, .tooManyConnections: .failed
        case .refusedByPolicy, .rateExceeded: .refused
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
        case .sourcePortTaken: "The source port has another connection with the to-host"
        case .hostNotListening: "The to-host does not accept connections"
        case .kernelRefused: "The kernel refused the change"
        case .superseded: "A newer migration took over"
        case .interrupted: "The daemon stopped meanwhile"
        case .methodNotAllowed: "The resource does not know this method"
        case .requestTimeout: "The request was not complete in time"
        case .eventsGone: "Events before the oldest kept one are gone"
        case .contentTooLarge: "The body is too large"
        case .unsupportedMediaType: "The body is not JSON"
        case .idempotencyKeyReused: "The idempotency key belongs to another request"
        case .headersTooLarge: "The headers are too large"
        case .internalError: "The daemon failed"
        case .tooManyConnections: "Too many connections"
        case .refusedByPolicy: "The policy does not allow it"
        case .rateExceeded: "Too many migrations at once"
        case .notPrepared: "The prepare hook failed"
        case .notAwaitingConfirmation: "Nothing waits to be confirmed"
        }
    }
}
