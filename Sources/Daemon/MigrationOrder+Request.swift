// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
package import Migration
internal import Wire

/// A request that cannot be understood.
package struct MalformedOrder: Error {
    package var problem: Problem
    init(_ detail: String) { problem = Problem(kind: .malformedRequest, detail: detail) }
}

extension MigrationRequest {
    /// Reads a controller's order.
    package init(_ order: MigrationOrder, defaultDatapath: Datapath, checksHost: Bool) throws(MalformedOrder) {
        let everyone = order.scope == Scope.service.rawValue ? SessionKey.everyClient : nil
        guard let from = order.from, let named = order.client ?? everyone else {
            throw MalformedOrder("The order names no session: it takes client and from, or a session's number.")
        }
        guard let home = Endpoint(from), home.port != 0 else {
            throw MalformedOrder(
                "\"\(from)\" is not an address with a port: write 192.0.2.1:80 or [2001:db8::1]:80 for --from.")
        }
        let client: IPAddress?
        let port: UInt16?
        if named == SessionKey.everyClient {
            (client, port) = (nil, nil)
        } else if let address = IPAddress(named) {
            (client, port) = (address, nil)
        } else if let endpoint = Endpoint(named), endpoint.port != 0 {
            (client, port) = (endpoint.address, endpoint.port)
        } else {
            throw MalformedOrder(
                "\"\(named)\" is not an address: write 192.0.2.9, 192.0.2.9:49152, [2001:db8::9]:49152 or any for --client."
            )
        }
        let scope: Scope
        if let text = order.scope {
            guard let scopeNamed = Scope(rawValue: text) else {
                throw MalformedOrder("\"\(text)\" is not a scope: use connection, client or service.")
            }
            scope = scopeNamed
        } else {
            scope = client == nil ? .service : port == nil ? .client : .connection
        }
        if (scope == .service) != (client == nil) {
            throw MalformedOrder("Scope service is for every client, and no other is: leave --client out with it.")
        }
        if scope == .connection, port == nil {
            throw MalformedOrder("Scope connection needs the client's port: write it behind the address in --client.")
        }
        if order.translation != nil, order.to != nil {
            throw MalformedOrder("A stated translation names the to-host: leave --to out with it.")
        }
        let hosts = try Self.hosts(order, home: home)
        let stated = order.translation.flatMap { Endpoint($0.destination) }
        var datapath = defaultDatapath
        if let text = order.datapath {
            guard let named = Datapath(rawValue: text) else {
                throw MalformedOrder("\"\(text)\" is not a datapath: use kernel or queue.")
            }
            datapath = named
        }
        let key = SessionKey(client: client, clientPort: scope == .connection ? port : nil, home: home)
        let host = stated ?? hosts.first
        for address in [client, home.address, host?.address].compactMap({ $0 }) {
            if !address.isUnicast { throw MalformedOrder(MigrationFailure.unusableAddress(address).description) }
            if address.family != home.address.family {
                throw MalformedOrder(
                    MigrationFailure.mixedFamilies(key, host: Endpoint(address: address, port: host?.port ?? 0))
                        .description)
            }
        }
        self.init(
            session: key, to: hosts.first, datapath: datapath, passive: order.passive ?? false, checksHost: checksHost)
        if hosts.count > 1 { candidates = hosts }
        if let translation = order.translation { try state(translation) }
    }
}

extension SessionKey {
    /// What a request names every client by.
    static let everyClient = "any"

    /// The client as a request names it.
    var clientText: String {
        switch scope {
        case .connection: "\(clientEndpoint)"
        case .client: "\(clientEndpoint.address)"
        case .service: Self.everyClient
        }
    }
}

extension MigrationFailure {
    /// The refusal that this failure becomes.
    var problem: Problem {
        let kind: ProblemKind =
            switch self {
            case .unknownConnection: .unknownConnection
            case .alreadyThere: .alreadyThere
            case .mixedFamilies, .unusableAddress: .malformedRequest
            case .otherScopeBound: .otherScopeBound
            case .hostServesOtherHome: .hostServesOtherHome
            case .sourcePortTaken, .ownConnection, .noSourcePort: .sourcePortTaken
            case .hostNotListening: .hostNotListening
            case .kernelRefused: .kernelRefused
            case .superseded: .superseded
            case .interrupted: .interrupted
            case .refused(.rate): .rateExceeded
            case .refused: .refusedByPolicy
            case .notPrepared: .notPrepared
            }
        return Problem(kind: kind, detail: description)
    }
}
