// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import FlyingFox
internal import FlyingSocks
internal import Foundation

/// The client side of the control interface.
struct Client {
    var socket: String

    func get<Answer: Decodable>(_ path: String, query: [String: String] = [:]) async throws -> Answer {
        try await exchange(.GET, path, query: query, body: Data())
    }

    func post<Answer: Decodable>(_ path: String, _ body: some Encodable) async throws -> Answer {
        try await exchange(.POST, path, query: [:], body: try JSONEncoder().encode(body))
    }

    /// One request on a connection of its own. Throws a `Problem` when the daemon refuses.
    private func exchange<Answer: Decodable>(
        _ method: HTTPMethod, _ path: String, query: [String: String], body: Data
    ) async throws -> Answer {
        var headers: [HTTPHeader: String] = [HTTPHeader("Host"): "nfqmigd", HTTPHeader("Connection"): "close"]
        if method == .POST { headers[.contentType] = "application/json" }
        let request = HTTPRequest(
            method: method, version: .http11, path: path,
            query: query.map { HTTPRequest.QueryItem(name: $0.key, value: $0.value) }, headers: headers, body: body)
        let status: Int
        let data: Data
        do {
            var client = HTTPClient()
            let response = try await client.sendHTTPRequest(request, to: .unix(path: socket))
            status = response.statusCode.code
            data = try await response.bodyData
        } catch {
            throw Unreachable(socket: socket)
        }
        if (200..<300).contains(status) { return try JSONDecoder().decode(Answer.self, from: data) }
        if let problem = try? JSONDecoder().decode(Problem.self, from: data) { throw problem }
        throw Unreachable(socket: socket)
    }
}

/// Nobody answers on the control socket, or not in our language.
struct Unreachable: Error, CustomStringConvertible {
    var socket: String

    var description: String {
        "No nfqmigd answers on \(socket): start it with \"nfqmigd run\", or name its socket with --socket."
    }
}
