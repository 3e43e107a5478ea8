// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Wire

/// One client, one home, two hosts of the documentation ranges.
enum Cast {
    static let client = endpoint("192.0.2.9:40000")
    static let home = endpoint("198.51.100.1:80")
    static let b = endpoint("198.51.100.2:8080")
    static let d = endpoint("198.51.100.3:80")

    static func endpoint(_ text: String) -> Endpoint {
        Endpoint(text) ?? Endpoint(address: .v4(IPv4Address(rawValue: 0)), port: 0)
    }

    static func key(_ scope: Scope) -> SessionKey {
        SessionKey(client: client.address, clientPort: scope == .connection ? client.port : nil, home: home)
    }

    static let connection = LocatedConnection(
        clientSide: FourTuple(source: client, destination: home),
        serverSide: FourTuple(source: client, destination: home), phase: .established)

    static func request(
        to: Endpoint?, scope: Scope = .connection, datapath: Datapath = .kernel, passive: Bool = false
    ) -> MigrationRequest {
        MigrationRequest(session: key(scope), to: to, datapath: datapath, passive: passive)
    }
}

/// Runs a machine as the daemon does, answering what it asks, and remembers what it wanted.
struct MigrationDriver {
    var machine: MigrationMachine
    var found: [LocatedConnection] = [Cast.connection]
    /// nil: everything that is asked listens.
    var check: MigrationMachine.HostCheck?
    var sourcePort: UInt16?
    var installSucceeds = true
    var preparation: MigrationMachine.Event? = .prepared(to: nil)
    var effects: [String] = []
    var changes: [SessionChange] = []
    var now: UInt64 = 1_000_000_000

    init(_ request: MigrationRequest, session: Session? = nil) {
        machine = MigrationMachine(
            id: 1, request: request, session: session ?? Session(key: request.session),
            lifetimes: MigrationMachine.Lifetimes())
    }

    mutating func tell(_ event: MigrationMachine.Event) {
        var events = [event]
        while !events.isEmpty {
            for effect in machine.handle(events.removeFirst(), at: now) {
                switch effect {
                case .locate:
                    effects.append("locate")
                    events.append(.located(found))
                case .prepare:
                    effects.append("prepare")
                    if let preparation { events.append(preparation) }
                case .check(let hosts):
                    effects.append("check " + hosts.map { "\($0)" }.joined(separator: " "))
                    events.append(.checked(check ?? .listening(hosts)))
                case .place(let hosts, _):
                    effects.append("place")
                    let host = hosts.first ?? machine.request.session.home
                    events.append(.placed(Placement(host: host, sourcePort: sourcePort)))
                case .install(let from, let to):
                    effects.append("install")
                    changes.append(SessionChange(from: from, to: to))
                    if changes.count == 1 {
                        events.append(installSucceeds ? .installed : .installFailed(reason: "no"))
                        if !installSucceeds { machine.adopt(from) }
                    }
                case .forget:
                    effects.append("forget")
                    events.append(.forgotten)
                case .reset(_, let client): effects.append(client ? "reset both" : "reset from-host")
                case .leaveClientAlone: effects.append("leave client alone")
                case .finish(let outcome): effects.append("finish \(outcome)")
                }
            }
        }
    }
}
