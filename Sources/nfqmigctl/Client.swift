// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix

/// The client side of the control interface.
struct Client {
    var socket: String

    func get<Answer: Decodable>(_ path: String, query: [String: String] = [:]) async throws -> Answer {
        try Self.decode(try await exchange(.GET, Self.target(path, query), body: nil, headers: [:]))
    }

    /// Sends an order. It has a key of its own, so that it is carried out once also when it has to be sent twice.
    func post<Answer: Decodable>(_ path: String, _ body: some Encodable) async throws -> Answer {
        let headers: HTTPHeaders = ["content-type": "application/json", "idempotency-key": UUID().uuidString]
        return try Self.decode(
            try await exchange(.POST, path, body: try JSONEncoder().encode(body), headers: headers))
    }

    /// Calls `each` with every event after `id` (nil: from now on) that the filter of `query` lets through, and resumes
    /// when the connection breaks, until `each` returns false.
    func events(
        after id: UInt64?, query: [String: String] = [:], _ each: (Event) async throws -> Bool
    ) async throws {
        var last = id
        var attempts = 0
        while true {
            var query = query
            if let last { query["after"] = "\(last)" }
            do {
                let connection = try await Connection(socket)
                let wantsMore = try await connection.events(Self.target("/v1/events", query)) { id, event in
                    attempts = 0
                    if let id { last = id }
                    guard let event else { return true }
                    return try await each(event)
                }
                guard wantsMore else { return }
            } catch is Interrupted {
            } catch let error as Unreachable where last != nil && attempts < 30 {
                // A daemon that starts anew is there again soon.
                if error.reason == .noPermission { throw error }
            }
            attempts += 1
            try await Task.sleep(for: .seconds(1))
        }
    }

    static func target(_ path: String, _ query: [String: String]) -> String {
        guard !query.isEmpty else { return path }
        var allowed = CharacterSet.alphanumerics
        allowed.insert(charactersIn: "-._~:[]/")
        let pairs = query.sorted { $0.key < $1.key }.map { name, value in
            name + "=" + (value.addingPercentEncoding(withAllowedCharacters: allowed) ?? "")
        }
        return path + "?" + pairs.joined(separator: "&")
    }

    private func exchange(
        _ method: HTTPMethod, _ target: String, body: Data?, headers: HTTPHeaders
    ) async throws -> (status: Int, body: Data) {
        do {
            return try await Connection(socket).exchange(method, target, body: body, headers: headers)
        } catch is Interrupted {
            return try await Connection(socket).exchange(method, target, body: body, headers: headers)
        }
    }

    /// Throws a `Problem` when the daemon refuses.
    fileprivate static func decode<Answer: Decodable>(_ answer: (status: Int, body: Data)) throws -> Answer {
        if (200..<300).contains(answer.status) { return try JSONDecoder().decode(Answer.self, from: answer.body) }
        throw try JSONDecoder().decode(Problem.self, from: answer.body)
    }
}

/// The connection broke before the answer was there.
struct Interrupted: Error, CustomStringConvertible {
    var description: String { "nfqmigd ended the connection before it had answered: see its log." }
}

/// Nobody answers on the control socket.
struct Unreachable: Error, CustomStringConvertible {
    enum Reason { case nobody, noPermission }
    var socket: String
    var reason = Reason.nobody

    var description: String {
        switch reason {
        case .nobody:
            "No nfqmigd answers on \(socket): start it with \"nfqmigd run\", or name its socket with --socket."
        case .noPermission:
            "You may not open \(socket): become root, or a member of the group that it belongs to."
        }
    }
}

/// One connection to the daemon, for one request.
private struct Connection {
    typealias Parts = NIOAsyncChannel<HTTPClientResponsePart, HTTPClientRequestPart>
    let channel: Parts

    init(_ socket: String) async throws {
        var attempts = 0
        while true {
            do {
                channel = try await Self.connect(socket)
                return
            } catch let error as IOError where error.errnoCode == EAGAIN && attempts < 100 {
                // It listens, and many others have come at the same time.
                attempts += 1
                try await Task.sleep(for: .milliseconds(20))
            } catch {
                let isForbidden = (error as? IOError)?.errnoCode == EACCES
                throw Unreachable(socket: socket, reason: isForbidden ? .noPermission : .nobody)
            }
        }
    }

    private static func connect(_ socket: String) async throws -> Parts {
        try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .connect(unixDomainSocketPath: socket) { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHTTPClientHandlers()
                    return try Parts(wrappingChannelSynchronously: channel)
                }
            }
    }

    /// Sends a request and gives the whole answer. Throws `Interrupted` when it breaks off.
    func exchange(
        _ method: HTTPMethod, _ target: String, body: Data?, headers: HTTPHeaders
    ) async throws -> (status: Int, body: Data) {
        try await whileConnected { inbound, outbound in
            try await send(method, target, body: body, headers: headers, outbound)
            return try await Self.receive(inbound)
        }
    }

    /// Reads a stream of server-sent events. False when `each` wants no more of them, true when the stream ends.
    func events(
        _ target: String, _ each: (UInt64?, Event?) async throws -> Bool
    ) async throws -> Bool {
        try await whileConnected { inbound, outbound in
            try await send(.GET, target, body: nil, headers: ["accept": "text/event-stream"], outbound)
            var parser = EventStreamParser()
            var status = 200
            var refusal = Data()
            for try await part in inbound {
                switch part {
                case .head(let head): status = Int(head.status.code)
                case .body(let octets) where status != 200: refusal += octets.readableBytesView
                case .body(let octets):
                    for block in parser.parse(octets.readableBytesView) {
                        if block.type == "reset" { throw try JSONDecoder().decode(Problem.self, from: block.data) }
                        let event = block.data.isEmpty ? nil : try JSONDecoder().decode(Event.self, from: block.data)
                        if try await !each(block.id, event) { return false }
                    }
                case .end: break
                }
            }
            if status != 200 { throw try JSONDecoder().decode(Problem.self, from: refusal) }
            return true
        }
    }

    private func whileConnected<Result>(
        _ body: (
            NIOAsyncChannelInboundStream<HTTPClientResponsePart>, NIOAsyncChannelOutboundWriter<HTTPClientRequestPart>
        )
            async throws -> Result
    ) async throws -> Result {
        do {
            return try await channel.executeThenClose { inbound, outbound in try await body(inbound, outbound) }
        } catch is IOError {
            throw Interrupted()
        } catch is ChannelError {
            throw Interrupted()
        } catch is HTTPParserError {
            throw Interrupted()
        }
    }

    private func send(
        _ method: HTTPMethod, _ target: String, body: Data?, headers: HTTPHeaders,
        _ outbound: NIOAsyncChannelOutboundWriter<HTTPClientRequestPart>
    ) async throws {
        var head = HTTPRequestHead(version: .http1_1, method: method, uri: target, headers: headers)
        head.headers.add(name: "host", value: "nfqmigd")
        head.headers.add(name: "connection", value: "close")
        if let body { head.headers.add(name: "content-length", value: "\(body.count)") }
        var parts: [HTTPClientRequestPart] = [.head(head)]
        if let body { parts.append(.body(.byteBuffer(ByteBuffer(bytes: body)))) }
        // At once: the answer may be there, and the connection closed, before a second write.
        try await outbound.write(contentsOf: parts + [.end(nil)])
    }

    private static func receive(
        _ inbound: NIOAsyncChannelInboundStream<HTTPClientResponsePart>
    ) async throws -> (status: Int, body: Data) {
        var status: Int?
        var body = Data()
        for try await part in inbound {
            switch part {
            case .head(let head): status = Int(head.status.code)
            case .body(let octets): body += octets.readableBytesView
            case .end:
                if let status { return (status, body) }
            }
        }
        throw Interrupted()
    }
}
