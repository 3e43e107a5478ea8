// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Logging
internal import NIOCore
internal import NIOHTTP1

/// An answer as it goes out.
struct Reply: Hashable, Sendable {
    var status: Int
    var contentType: String
    var body: Data
    var headers: [String: String] = [:]

    init(status: Int, contentType: String, body: Data) {
        self.status = status
        self.contentType = contentType
        self.body = body
    }

    init(_ problem: Problem) {
        self.init(
            status: problem.status, contentType: "application/problem+json", body: (try? Self.encode(problem)) ?? Data()
        )
    }

    static func encode(_ document: some Encodable) throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(document)
    }

    func head(version: HTTPVersion, closes: Bool) -> HTTPResponseHead {
        var fields: HTTPHeaders = ["content-type": contentType, "content-length": "\(body.count)"]
        for (name, value) in headers.sorted(by: { $0.key < $1.key }) { fields.add(name: name, value: value) }
        fields.add(name: "connection", value: closes ? "close" : "keep-alive")
        return HTTPResponseHead(version: version, status: HTTPResponseStatus(statusCode: status), headers: fields)
    }
}

/// Turns requests into answers: finds the route, checks what every route wants checked, and writes what comes out.
struct ControlResponder: Sendable {
    let table: RouteTable
    let idempotency: IdempotencyStore
    let logger: Logger

    /// Seconds that a consumer may leave an answer lying.
    static let patience: Int64 = 60
    /// Seconds of silence on a stream of events before a sign of life.
    static let keepAlive: UInt64 = 15

    /// The longest body of a request with this head, in octets.
    func longestBody(of head: HTTPRequestHead) -> Int {
        guard let target = try? RequestTarget(head.uri),
            case .route(let route, _) = table.match(head.method.rawValue, target.path)
        else { return ControlRoute.shortBody }
        return route.longestBody
    }

    /// Answers one request on its connection.
    func answer(_ request: ReceivedRequest, on channel: any Channel) async {
        let version: HTTPVersion = request.head.version == .http1_0 ? .http1_0 : .http1_1
        // After these the parser does not go on.
        let isLast =
            !request.head.isKeepAlive || request.head.method == .CONNECT
            || request.head.headers.contains(name: "upgrade")
        do {
            switch await outcome(of: request) {
            case .reply(let reply):
                // The answer to HEAD ends with its head, whatever its Content-Length says (RFC 9110 section 9.3.2).
                let body: [HTTPServerResponsePart] =
                    request.head.method == .HEAD ? [] : [.body(.byteBuffer(ByteBuffer(bytes: reply.body)))]
                try await write(
                    [.head(reply.head(version: version, closes: isLast))] + body + [.end(nil)], on: channel)
                if isLast { try await channel.close() }
            case .events(let feed):
                try await stream(feed, version: version, on: channel)
                try await channel.close()
            }
        } catch {
            // The other end has gone, or does not read: there is nobody to tell.
            try? await channel.close()
        }
    }

    private enum Outcome {
        case reply(Reply)
        case events(EventFeed)
    }

    private func outcome(of received: ReceivedRequest) async -> Outcome {
        do throws(Problem) {
            let target = try RequestTarget(received.head.uri)
            let method = received.head.method.rawValue
            switch table.match(method, target.path) {
            case .none:
                throw Problem(
                    kind: .unknownPath, detail: "There is nothing here: docs/openapi.yaml lists the paths.")
            case .otherMethods(let methods):
                let allowed = methods.joined(separator: ", ")
                var reply = Reply(
                    Problem(kind: .methodNotAllowed, detail: "\(quoted(method)) is not known here: use \(allowed)."))
                reply.headers["allow"] = allowed
                return .reply(reply)
            case .route(let route, let parameters):
                let request = try check(received, target, route, parameters)
                guard let key = try idempotencyKey(of: request, method) else { return await run(route, request) }
                return .reply(
                    await idempotency.reply(
                        key, caller: request.caller, to: "\(method) \(received.head.uri)", request.body
                    ) {
                        guard case .reply(let reply) = await run(route, request) else {
                            return Reply(Problem(kind: .internalError, detail: "A stream cannot be repeated."))
                        }
                        return reply
                    })
            }
        } catch {
            return .reply(Reply(error))
        }
    }

    private func check(
        _ received: ReceivedRequest, _ target: RequestTarget, _ route: ControlRoute, _ parameters: [String: String]
    ) throws(Problem) -> ControlRequest {
        var headers: [String: String] = [:]
        for (name, value) in received.head.headers { headers[name.lowercased()] = value }
        if let unknown = target.query.keys.sorted().first(where: { !route.query.contains($0) }) {
            let choice = route.query.isEmpty ? "it takes none" : "use " + route.query.joined(separator: ", ")
            throw Problem(
                kind: .malformedRequest, detail: "\(quoted(unknown)) is not a parameter of \(route.path): \(choice).")
        }
        if !received.body.isEmpty, let type = headers["content-type"]?.lowercased() {
            let essence = type.prefix { $0 != ";" }.filter { $0 != " " }
            guard essence == "application/json" else {
                throw Problem(
                    kind: .unsupportedMediaType, detail: "A body has to be JSON: send Content-Type: application/json.")
            }
        }
        return ControlRequest(
            caller: received.caller, parameters: parameters, query: target.query, headers: headers, body: received.body)
    }

    private func idempotencyKey(of request: ControlRequest, _ method: String) throws(Problem) -> String? {
        guard method == "POST", let key = request.headers["idempotency-key"] else { return nil }
        guard (1...255).contains(key.utf8.count), key.utf8.allSatisfy({ (0x20...0x7e).contains($0) }) else {
            throw Problem(
                kind: .malformedRequest, detail: "Idempotency-Key takes 1 to 255 printable ASCII characters.")
        }
        return key
    }

    private func run(_ route: ControlRoute, _ request: ControlRequest) async -> Outcome {
        do {
            switch try await route.handle(request) {
            case .text(let text):
                return .reply(Reply(status: 200, contentType: "text/plain; charset=utf-8", body: Data(text.utf8)))
            case .document(let document, let status):
                return .reply(
                    Reply(status: status, contentType: "application/json", body: try Reply.encode(document)))
            case .events(let feed): return .events(feed)
            }
        } catch let problem as Problem {
            return .reply(Reply(problem))
        } catch {
            logger.error("\(route.method) \(route.path): \(error)")
            return .reply(Reply(Problem(kind: .internalError, detail: "nfqmigd could not answer: see its log.")))
        }
    }

    // MARK: - Server-sent events

    /// Writes events as they happen, until the other end or the daemon goes, or events are lost that it has not read.
    private func stream(_ feed: EventFeed, version: HTTPVersion, on channel: any Channel) async throws {
        var feed = feed
        let head = HTTPResponseHead(
            version: version, status: .ok,
            headers: ["content-type": "text/event-stream", "cache-control": "no-store", "connection": "close"])
        var text = "retry: 1000\n\n"
        try await write([.head(head), .body(.byteBuffer(ByteBuffer(string: text)))], on: channel)
        while !Task.isCancelled {
            guard let events = await feed.next(limit: 256, patience: Self.keepAlive * 1_000_000_000) else {
                let gone = await feed.coordinator.eventsGone(after: feed.last)
                let document = String(decoding: try Reply.encode(gone), as: UTF8.self)
                return try await write(
                    [.body(.byteBuffer(ByteBuffer(string: "event: reset\ndata: \(document)\n\n"))), .end(nil)],
                    on: channel)
            }
            if await feed.coordinator.isStopping {
                return try await write([.end(nil)], on: channel)
            }
            // Without data nothing is dispatched, but the id counts: a filtered consumer does not fall behind.
            text = events.isEmpty ? ": keep-alive\nid: \(feed.last)\n\n" : ""
            for event in events { text += try Self.block(event) }
            try await write([.body(.byteBuffer(ByteBuffer(string: text)))], on: channel)
        }
    }

    private static func block(_ event: Event) throws -> String {
        // JSON has no raw line ends: one data line holds it.
        let document = String(decoding: try Reply.encode(event), as: UTF8.self)
        return "id: \(event.id)\nevent: \(event.kind.rawValue)\ndata: \(document)\n\n"
    }

    /// Returns when the kernel has taken it all; gives up on somebody who does not read.
    private func write(_ parts: [HTTPServerResponsePart], on channel: any Channel) async throws {
        let patience = channel.eventLoop.scheduleTask(in: .seconds(Self.patience)) { channel.close(promise: nil) }
        defer { patience.cancel() }
        for part in parts.dropLast() { channel.write(part, promise: nil) }
        if let last = parts.last { try await channel.writeAndFlush(last).get() }
    }
}
