// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Migration
internal import Wire

/// Which part of a list is wanted.
struct PageRequest: Sendable {
    /// The most items that one answer holds.
    static let longest = 1000

    var limit: Int
    /// Where the page before ended; nil for the first one.
    var after: String?

    init(_ request: ControlRequest) throws(Problem) {
        limit = Self.longest
        if let number = try request.number("limit") {
            guard (1...UInt64(Self.longest)).contains(number) else {
                throw Problem(kind: .malformedRequest, detail: "limit takes a number from 1 to \(Self.longest).")
            }
            limit = Int(number)
        }
        after = request.query["after"]
    }

    /// The page of `items`, sorted by `key`, and where the next one begins, if there is one. An item that comes or goes
    /// meanwhile moves no other one out of the pages.
    func page<Item, Key: Comparable & LosslessStringConvertible>(
        of items: [Item], by key: (Item) -> Key
    ) throws(Problem) -> (items: [Item], next: String?) {
        var rest = items.map { (key: key($0), item: $0) }.sorted { $0.key < $1.key }[...]
        if let after {
            guard let last = Key(after) else {
                throw Problem(
                    kind: .malformedRequest, detail: "after takes what the page before has given as next.")
            }
            rest = rest.drop { $0.key <= last }
        }
        let page = rest.prefix(limit)
        return (page.map(\.item), page.count < rest.count ? page.last.map { "\($0.key)" } : nil)
    }
}

extension ControlRequest {
    /// Whether an item's field, an endpoint or an address, is what parameter `name` of the query asks for: an address stands
    /// for all its ports.
    func endpointFilter(_ name: String) throws(Problem) -> (String) -> Bool {
        guard let text = query[name] else { return { _ in true } }
        if let endpoint = Endpoint(text) { return { $0 == "\(endpoint)" } }
        if name == "client", text == SessionKey.everyClient { return { $0 == text } }
        guard let address = IPAddress(text) else {
            throw Problem(
                kind: .malformedRequest,
                detail:
                    "\(quoted(text)) is not an address: write 192.0.2.1, 192.0.2.1:80 or [2001:db8::1]:80 for \(name).")
        }
        return { $0 == "\(address)" || Endpoint($0)?.address == address }
    }

    func wordFilter(_ name: String) -> (String) -> Bool {
        guard let word = query[name] else { return { _ in true } }
        return { $0 == word }
    }
}

extension Coordinator {
    nonisolated var listRoutes: [ControlRoute] {
        let paging = ["limit", "after"]
        return [
            ControlRoute("GET", "/v1/sessions", query: ["client", "home", "host"] + paging) { request in
                let (client, home) = (try request.endpointFilter("client"), try request.endpointFilter("home"))
                let host = try request.endpointFilter("host")
                var list = await self.sessionList()
                list.sessions.removeAll { !client($0.client) || !home($0.home) || !host($0.host) }
                (list.sessions, list.next) = try PageRequest(request).page(of: list.sessions) {
                    "\($0.client) \($0.home) \($0.scope)"
                }
                return .document(list)
            },
            ControlRoute("GET", "/v1/connections", query: ["client", "home", "host", "state"] + paging) { request in
                let (client, home) = (try request.endpointFilter("client"), try request.endpointFilter("home"))
                let (host, state) = (try request.endpointFilter("host"), request.wordFilter("state"))
                let page = try PageRequest(request)
                var list = try await self.connectionList()
                list.connections.removeAll {
                    !client($0.client) || !home($0.home) || !host($0.host) || !state($0.state)
                }
                (list.connections, list.next) = try page.page(of: list.connections) {
                    "\($0.client) \($0.home) \($0.host)"
                }
                return .document(list)
            },
            ControlRoute("GET", "/v1/migrations", query: ["client", "home", "state"] + paging) { request in
                let (client, home) = (try request.endpointFilter("client"), try request.endpointFilter("home"))
                let state = request.wordFilter("state")
                _ = try request.number("after")
                var list = await self.migrationList()
                list.migrations.removeAll { !client($0.client) || !home($0.home) || !state($0.outcome ?? "running") }
                (list.migrations, list.next) = try PageRequest(request).page(of: list.migrations, by: \.id)
                return .document(list)
            },
        ]
    }
}
