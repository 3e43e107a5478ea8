// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Migration
internal import NFQueueBridge
internal import Ruleset
internal import Wire

extension Coordinator {
    nonisolated var explainRoutes: [ControlRoute] {
        [
            ControlRoute("GET", "/v1/explain", query: ["client", "home"]) { request in
                let text = request.query["client"] ?? ""
                let client: Endpoint
                if let endpoint = Endpoint(text) {
                    client = endpoint
                } else if let address = IPAddress(text) {
                    client = Endpoint(address: address, port: 0)
                } else {
                    throw Problem(
                        kind: .malformedRequest,
                        detail:
                            "client takes an address, or an endpoint such as 192.0.2.9:49152 or [2001:db8::9]:49152.")
                }
                guard let home = request.query["home"].flatMap({ Endpoint($0) }), home.port != 0 else {
                    throw Problem(
                        kind: .malformedRequest,
                        detail: "home takes an endpoint such as 192.0.2.1:80 or [2001:db8::1]:80.")
                }
                guard client.address.family == home.address.family else {
                    throw Problem(kind: .malformedRequest, detail: "client and home have to be of one address family.")
                }
                return .document(try await self.explain(client, home: home))
            }
        ]
    }

    /// What packets `client` → `home` meet. A client's port 0 stands for any port.
    func explain(_ client: Endpoint, home: Endpoint) throws(Problem) -> Explanation {
        let session = covering(client, home)
        let host = session?.host ?? home
        let elements: [TableElement]
        let entries: [ConnectionEntry]
        let isCarried: Bool
        do {
            elements = try gateway.table.exists ? Array(gateway.table.elements()) : []
            isCarried = try client.port != 0 && gateway.table.carries(FourTuple(source: client, destination: home))
            entries = try gateway.conntrack.entries(client: client.address)
        } catch {
            throw Problem(kind: .kernelRefused, detail: "\(error)")
        }
        let met = elements.filter { $0.meets(client, home: home, host: host) }
        let opening =
            switch session?.binding?.datapath {
            case .kernel?: "It goes to \(host): the kernel translates it."
            case .queue? where gateway.table.ruleset.carries(home.address.family):
                "It goes to \(host): a queue thread judges it, and the kernel carries its connection on by itself."
            case .queue?: "It goes to \(host): a queue thread judges this and every later packet."
            case nil: "It goes home, untouched by nfqmigd."
            }
        return Explanation(
            client: client.port == 0 ? "\(client.address)" : "\(client)", home: "\(home)",
            session: session.flatMap { session in
                sessionList().sessions.first {
                    $0.client == session.key.clientText && $0.home == "\(session.key.home)"
                        && $0.scope == session.key.scope.rawValue
                }
            },
            newConnection: opening,
            existingConnection: existing(client, home, session, isCarried: isCarried),
            elements: met.map { "\($0)" }.sorted(),
            conntrack: entries.filter { entry in
                entry.isBetween(client, [home, host])
            }.map { entry in
                Explanation.Entry(
                    original: "\(entry.original)", reply: "\(entry.reply)",
                    state: entry.state.map { "\($0)" } ?? "unknown", mark: "0x" + String(entry.mark, radix: 16),
                    timeout: entry.timeout)
            },
            mark: session?.binding?.datapath == .queue ? "0x" + String(configuration.mark, radix: 16) : nil)
    }

    /// The session that covers this client and home: the narrowest that is bound, else one that has transits.
    private func covering(_ client: Endpoint, _ home: Endpoint) -> Session? {
        let candidates = sessions.values.filter {
            $0.key.home == home && ($0.key.client ?? client.address) == client.address
                && ($0.key.clientPort == nil || client.port == 0 || $0.key.clientPort == client.port)
        }.sorted { $0.key.breadth < $1.key.breadth }
        return candidates.first { $0.binding != nil } ?? candidates.first
    }

    private func existing(_ client: Endpoint, _ home: Endpoint, _ session: Session?, isCarried: Bool) -> String {
        let tuple = FourTuple(source: client, destination: home)
        switch session?.transits[tuple]?.transit {
        case .frozen?: return "It is stopped: the session is being switched."
        case .awaitingSYN?: return "It is stopped: the old connection has been moved, and a SYN is awaited."
        case .trailing?:
            return "It belongs to a connection that the session has left, and is rewritten until that ends."
        case .guarded?: return "It is answered with a RST by the kernel."
        case nil: break
        }
        switch session?.binding?.datapath {
        case .kernel?: return "It goes where conntrack's entry says."
        case .queue?:
            let host = session?.host ?? home
            if isCarried {
                return "The kernel carries it to \(host) by itself: a queue thread has judged its connection."
            }
            if client.port == 0, gateway.table.ruleset.carries(home.address.family) {
                return "The kernel carries it to \(host), or a queue thread judges it: name the client's port to know."
            }
            return "A queue thread judges it, and it goes to \(host)."
        case nil: return "It goes where conntrack's entry says, untouched by nfqmigd."
        }
    }
}

extension SessionKey {
    /// Narrower sessions come first, and of one client's connections the lowest port.
    fileprivate var breadth: (UInt8, UInt16) {
        if client == nil { return (2, 0) }
        return clientPort.map { (0, $0) } ?? (1, 0)
    }
}

extension ConnectionEntry {
    fileprivate func isBetween(_ client: Endpoint, _ servers: [Endpoint]) -> Bool {
        original.source.address == client.address && (client.port == 0 || original.source.port == client.port)
            && (servers.contains(original.destination) || servers.contains(reply.source))
    }
}

extension TableElement {
    /// Whether a packet between this client (port 0: any) and this home, or its host, matches.
    fileprivate func meets(_ client: Endpoint, home: Endpoint, host: Endpoint) -> Bool {
        func isClient(_ endpoint: Endpoint) -> Bool {
            endpoint.address == client.address && (client.port == 0 || endpoint.port == client.port)
        }
        switch self {
        case .divert(let tuple), .divertConnection(let tuple), .guard(let tuple), .guarded(let tuple),
            .reply(let tuple), .connection(let tuple, _),
            .source(let tuple, _):
            return isClient(tuple.source) && (tuple.destination == home || tuple.destination == host)
                || isClient(tuple.destination) && (tuple.source == home || tuple.source == host)
        case .divertClient(let address, let other), .client(let address, let other, _):
            return address == client.address && other == home
        case .credit(let address, let other): return address == client.address && other == home
        case .divertService(let other), .service(let other, _): return other == home
        case .involved(let address): return address == home.address || address == client.address
        case .answering(let address): return address == host.address
        case .endpointAddress, .endpointPort, .clientPort: return false
        case .icmpHome(let address): return address == home.address
        case .icmpPeer(let address): return address == client.address
        }
    }
}
