// SPDX-License-Identifier: GPL-3.0-or-later

internal import Migration
package import Ruleset
internal import Wire

/// The replies that a table holds, by what a session knows of its own.
struct LearntReplies {
    private var every: Set<FourTuple> = []
    /// By the host's endpoint, and by that and the client's address (with port 0).
    private var ofHost: [Endpoint: [FourTuple]] = [:]
    private var ofClient: [FourTuple: [FourTuple]] = [:]

    init(_ elements: some Sequence<TableElement>) {
        for case .reply(let tuple) in elements {
            every.insert(tuple)
            ofHost[tuple.source, default: []].append(tuple)
            ofClient[Self.anyPort(tuple), default: []].append(tuple)
        }
    }

    var isEmpty: Bool { every.isEmpty }

    private static func anyPort(_ tuple: FourTuple) -> FourTuple {
        FourTuple(source: tuple.source, destination: Endpoint(address: tuple.destination.address, port: 0))
    }

    /// Those that may be answers to connections of this session.
    func replies(of session: Session) -> [FourTuple] {
        let any = FourTuple(source: session.host, destination: session.key.clientEndpoint)
        let reply = session.hostSide?.reversed ?? any
        switch session.key.scope {
        case .connection: return every.contains(reply) ? [reply] : []
        case .client: return ofClient[reply] ?? []
        case .service: return ofHost[session.host] ?? []
        }
    }
}

extension SessionTable {
    /// Those of these replies that answer rewritten connections of a session of this table.
    func replies(of session: Session, among learnt: LearntReplies) -> [FourTuple] {
        guard session.binding?.datapath == .queue else { return [] }
        return learnt.replies(of: session).filter {
            session.hostSide != nil || boundSession(of: $0.destination, home: session.key.home)?.key == session.key
        }
    }

    /// The session whose binding decides where a connection of this client goes.
    func boundSession(of client: Endpoint, home: Endpoint) -> Session? {
        for key in SessionKey.covering(FourTuple(source: client, destination: home)) {
            if let session = self[key], session.binding != nil { return session }
        }
        return nil
    }

    /// Learns what the kernel has learnt: of a SYN that a full ring could not take nobody else has heard.
    package mutating func learn(from elements: some Sequence<TableElement>) {
        let learnt = LearntReplies(elements)
        if learnt.isEmpty { return }
        for session in values {
            for reply in replies(of: session, among: learnt) where !session.replies.contains(reply) {
                learn(reply, of: session.key)
            }
        }
    }
}
