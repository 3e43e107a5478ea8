// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import FlyingFox
internal import FlyingSocks
internal import Foundation
internal import Logging

/// The control interface: HTTP and JSON on a UNIX socket. It translates and decides nothing.
struct ControlService {
    let coordinator: Coordinator
    let path: String
    let logger: Logger

    /// The longest that a request may wait for an outcome, in seconds.
    private static let longestWait: Double = 86_400

    /// Serves until the task is cancelled.
    func run() async throws {
        let directory = (path as NSString).deletingLastPathComponent
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
        } catch {
            throw SystemError(operation: .controlSocket, errno: EACCES, path: path)
        }
        unsafe unlink(path)
        // Only root, and the group that the administrator gives the socket to.
        let mask = umask(0o117)
        let server = HTTPServer(address: .unix(path: path), timeout: Self.longestWait + 60, logger: .disabled)
        await route(on: server)
        let serving = Task { try await server.run() }
        try await server.waitUntilListening()
        umask(mask)
        logger.notice("listening on \(path)")
        try await withTaskCancellationHandler {
            try await serving.value
        } onCancel: {
            serving.cancel()
        }
    }

    private func route(on server: HTTPServer) async {
        let coordinator = coordinator
        await server.appendRoute("GET /healthz") { _ in
            HTTPResponse(statusCode: .ok, headers: [.contentType: "text/plain"], body: Data("ok\n".utf8))
        }
        await server.appendRoute("GET /v1/sessions") { _ in try Self.answer(await coordinator.sessionList()) }
        await server.appendRoute("GET /v1/migrations") { _ in try Self.answer(await coordinator.migrationList()) }
        await server.appendRoute("GET /v1/counters") { _ in try Self.answer(await coordinator.counters()) }
        await server.appendRoute("GET /v1/connections") { _ in
            do {
                return try Self.answer(try await coordinator.connectionList())
            } catch let problem as Problem {
                return Self.refuse(problem)
            }
        }
        await server.appendRoute("POST /v1/migrations") { request in
            do {
                let order: MigrationOrder
                do {
                    order = try JSONDecoder().decode(MigrationOrder.self, from: try await request.bodyData)
                } catch {
                    throw Problem(
                        kind: .malformedRequest,
                        detail: "The body is not a migration order: send JSON with client, from and to.")
                }
                let report = try await coordinator.migrate(order)
                return try Self.answer(report, status: .created)
            } catch let problem as Problem {
                return Self.refuse(problem)
            }
        }
        await server.appendRoute("GET /v1/migrations/:id") { request in
            do {
                guard let id = request.routeParameters["id"].flatMap({ UInt64($0) }) else {
                    throw Problem(kind: .unknownMigration, detail: "A migration's id is a whole number.")
                }
                let wait = request.query.first { $0.name == "wait" }.flatMap { Double($0.value) } ?? 0
                guard wait >= 0, wait <= Self.longestWait else {
                    throw Problem(kind: .malformedRequest, detail: "wait takes seconds, from 0 to 86400.")
                }
                return try Self.answer(try await coordinator.migration(id, wait: UInt64(wait * 1e9)))
            } catch let problem as Problem {
                return Self.refuse(problem)
            }
        }
        await server.appendRoute("*") { _ in
            Self.refuse(
                Problem(kind: .unknownPath, detail: "There is nothing here: docs/control-interface.md lists the paths.")
            )
        }
    }

    private static func answer(_ body: some Encodable, status: HTTPStatusCode = .ok) throws -> HTTPResponse {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return HTTPResponse(
            statusCode: status, headers: [.contentType: "application/json"], body: try encoder.encode(body))
    }

    private static func refuse(_ problem: Problem) -> HTTPResponse {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return HTTPResponse(
            statusCode: HTTPStatusCode(problem.status, phrase: problem.title),
            headers: [.contentType: "application/problem+json"], body: (try? encoder.encode(problem)) ?? Data())
    }
}
