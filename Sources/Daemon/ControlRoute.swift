// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation

/// Who asks, as the kernel tells it of the other end of a UNIX socket (SO_PEERCRED, unix(7)).
struct Caller: Hashable, Sendable {
    /// The process's effective user and group.
    var user: UInt32
    var group: UInt32
    /// The process; it may have gone.
    var process: Int32

    /// The daemon itself.
    static let daemon = Caller(user: 0, group: 0, process: 0)
}

/// One request of the control interface, whatever the library that carries it.
struct ControlRequest: Sendable {
    var caller: Caller
    /// The parts of the path that a route names.
    var parameters: [String: String]
    var query: [String: String]
    /// By lower-case name.
    var headers: [String: String]
    var body: Data

    /// Reads the body. Throws a `Problem` that says what was `expected` when it is not such a document, or names the
    /// member that such a document does not have.
    func document<Document: Codable>(_ type: Document.Type, expected: String) throws(Problem) -> Document {
        try StrictDocument.decode(type, from: body, expected: expected)
    }

    /// The same for a body that may be long. Long ones are read one after the other, so that the threads which all requests
    /// share are never all busy with them.
    func longDocument<Document: Codable & Sendable>(
        _ type: Document.Type, expected: String
    ) async throws(Problem) -> Document {
        guard body.count > ControlRoute.shortBody else { return try document(type, expected: expected) }
        return try await LongDocuments.shared.decode(type, from: body, expected: expected)
    }

    /// A number in the path. Throws `missing` when it is none.
    func identifier(_ name: String, orThrow missing: Problem) throws(Problem) -> UInt64 {
        guard let number = parameters[name].flatMap({ UInt64($0) }) else { throw missing }
        return number
    }

    /// `wait` of the query, in nanoseconds; 0 when it is absent.
    func wait() throws(Problem) -> UInt64 {
        guard let text = query["wait"] else { return 0 }
        guard let seconds = Double(text), seconds >= 0, seconds <= Self.longestWait else {
            throw Problem(kind: .malformedRequest, detail: "wait takes seconds, from 0 to 86400.")
        }
        return UInt64(seconds * 1e9)
    }

    /// The longest that a request may wait for an outcome, in seconds.
    static let longestWait: Double = 86_400
}

/// Reads one long document at a time.
private actor LongDocuments {
    static let shared = LongDocuments()

    func decode<Document: Codable & Sendable>(
        _ type: Document.Type, from body: Data, expected: String
    ) throws(Problem) -> Document {
        try StrictDocument.decode(type, from: body, expected: expected)
    }
}

/// What a request is answered with.
enum ControlAnswer: Sendable {
    case document(any Encodable & Sendable, status: Int = 200)
    case text(String)
    /// An endless stream of server-sent events.
    case events(EventFeed)
}

/// One path of the control interface with its method. A refusal is a thrown `Problem`.
struct ControlRoute: Sendable {
    /// Room for an order about one thing.
    static let shortBody = 64 << 10
    /// Room for an order that lists ten thousand sessions.
    static let longBody = 2 << 20

    let method: String
    /// `:name` stands for one part of any text.
    let path: String
    /// The parameters that the query may have; others are refused.
    let query: [String]
    /// The longest body, in octets.
    let longestBody: Int
    let handle: @Sendable (ControlRequest) async throws -> ControlAnswer

    init(
        _ method: String, _ path: String, query: [String] = [], longestBody: Int = Self.shortBody,
        _ handle: @escaping @Sendable (ControlRequest) async throws -> ControlAnswer
    ) {
        self.method = method
        self.path = path
        self.query = query
        self.longestBody = longestBody
        self.handle = handle
    }
}

extension Coordinator {
    /// Everything that the control interface offers.
    nonisolated var routes: [ControlRoute] {
        (readingRoutes + listRoutes + migrationRoutes + lifetimeRoutes + drainRoutes + eventRoutes + explainRoutes)
            .map { $0.audited(by: audit) }
    }

    private nonisolated var readingRoutes: [ControlRoute] {
        [
            ControlRoute("GET", "/healthz", query: []) { _ in .text("ok\n") },
            ControlRoute("GET", "/v1/counters", query: []) { _ in .document(await self.counters()) },
        ]
    }

    private nonisolated var migrationRoutes: [ControlRoute] {
        [
            ControlRoute("POST", "/v1/migrations", query: []) { request in
                let order = try request.document(
                    MigrationOrder.self, expected: "a migration order: send JSON with client, from and to")
                return .document(try await self.migrate(order, caller: request.caller), status: 201)
            },
            ControlRoute("GET", "/v1/migrations/:id", query: ["wait"]) { request in
                let id = try request.identifier(
                    "id", orThrow: Problem(kind: .unknownMigration, detail: "A migration's id is a whole number."))
                return .document(try await self.migration(id, wait: try request.wait()))
            },
        ]
    }
}
