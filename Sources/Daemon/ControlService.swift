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
        let server = HTTPServer(address: .unix(path: path), timeout: ControlRequest.longestWait + 60, logger: .disabled)
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
        for route in coordinator.routes {
            await server.appendRoute(HTTPRoute("\(route.method) \(route.path)")) { request in
                do {
                    return try Self.answer(try await route.handle(try await Self.read(request)))
                } catch let problem as Problem {
                    return Self.refuse(problem)
                }
            }
        }
        await server.appendRoute("*") { _ in
            Self.refuse(
                Problem(kind: .unknownPath, detail: "There is nothing here: docs/control-interface.md lists the paths.")
            )
        }
    }

    private static func read(_ request: HTTPRequest) async throws -> ControlRequest {
        var parameters: [String: String] = [:]
        for parameter in request.routeParameters { parameters[parameter.name] = parameter.value }
        var headers: [String: String] = [:]
        for (name, value) in request.headers { headers[name.rawValue.lowercased()] = value }
        return ControlRequest(
            // This library does not tell who has connected: it is root, or of the socket's group.
            caller: .daemon, parameters: parameters,
            query: Dictionary(request.query.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 }), headers: headers,
            body: try await request.bodyData)
    }

    private static func answer(_ answer: ControlAnswer) throws -> HTTPResponse {
        switch answer {
        case .text(let text):
            return HTTPResponse(statusCode: .ok, headers: [.contentType: "text/plain"], body: Data(text.utf8))
        case .document(let document, let status):
            return HTTPResponse(
                statusCode: HTTPStatusCode(status, phrase: status == 201 ? "Created" : "OK"),
                headers: [.contentType: "application/json"], body: try encode(document))
        }
    }

    private static func refuse(_ problem: Problem) -> HTTPResponse {
        HTTPResponse(
            statusCode: HTTPStatusCode(problem.status, phrase: problem.title),
            headers: [.contentType: "application/problem+json"], body: (try? encode(problem)) ?? Data())
    }

    private static func encode(_ document: some Encodable) throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(document)
    }
}
