// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import ControlInterface
internal import Migration
internal import Wire

extension Coordinator {
    /// The sessions that a drain would move, in the order of their turns: from one look at conntrack's table, and those
    /// that are bound to the from-host without having a connection.
    func members(_ selection: DrainSelection) throws(Problem) -> [DrainMembers.Member] {
        var found: [SessionKey: Candidate] = [:]
        var keys: [SessionKey] = []
        func add(_ key: SessionKey, _ entry: ConnectionEntry?) {
            if found[key] == nil {
                found[key] = Candidate()
                keys.append(key)
            }
            if let entry { found[key]?.add(entry) }
        }
        if let name = selection.service, policy.service(named: name) == nil {
            let names = policy.services.map { "\"\($0.name)\"" }.joined(separator: ", ")
            throw Problem(
                kind: .malformedRequest,
                detail: "No [[service]] of the configuration is named \"\(name)\": name one of \(names).")
        }
        func isMeant(_ key: SessionKey) -> Bool {
            selection.service.map { policy.service(of: key)?.name == $0 } ?? true
        }
        let entries: [ConnectionEntry]
        do {
            entries = try gateway.conntrack.entries { $0.phase != .closed }
        } catch {
            throw Problem(kind: .kernelRefused, detail: "\(error)")
        }
        for entry in entries where selection.client?.contains(entry.original.source.address) ?? true {
            let (client, home, host) = clientsView(of: entry)
            let key = key(of: client, home: home, scope: selection.scope)
            let isMoved = sessions[key]?.binding != nil
            guard selection.isFrom(host) || !isMoved && selection.isFrom(home),
                selection.isElsewhere(isMoved ? host : home, home: home), isMeant(key)
            else { continue }
            add(key, entry)
        }
        for session in sessions.values where session.binding.map({ selection.isFrom($0.host) }) ?? false {
            // A service has every client, and is not one of some clients only.
            let isWanted = selection.client.map { prefix in session.key.client.map { prefix.contains($0) } ?? false }
            let isElsewhere = selection.isElsewhere(session.host, home: session.key.home)
            if isWanted ?? true, isElsewhere, isMeant(session.key) { add(session.key, nil) }
        }
        if let explicit = selection.explicit {
            let wanted = Set(explicit)
            keys = keys.filter { wanted.contains($0) }
        }
        if let order = selection.order { keys = try sort(keys, by: order, found) }
        return keys.prefix(selection.atMost).map {
            DrainMembers.Member(key: $0, session: sessions[$0]?.id ?? 0, before: sessions[$0]?.binding)
        }
    }

    /// The session of a connection: the one that binds it, or else the one that the scope would make.
    private func key(of client: Endpoint, home: Endpoint, scope: Scope) -> SessionKey {
        let narrow = SessionKey(client: client.address, clientPort: client.port, home: home)
        let wide = SessionKey(client: client.address, clientPort: nil, home: home)
        if let bound = boundSession(of: client, home: home) { return bound.key }
        return scope == .client ? wide : narrow
    }

    private func sort(
        _ keys: [SessionKey], by order: DrainSelection.Order, _ found: [SessionKey: Candidate]
    ) throws(Problem) -> [SessionKey] {
        let isBusiest = order == .busiest
        guard
            keys.isEmpty || keys.contains(where: { isBusiest ? found[$0]?.octets != nil : found[$0]?.startedAt != nil })
        else {
            let (what, name) =
                isBusiest
                ? ("count what connections carry", "nf_conntrack_acct")
                : ("record when connections began", "nf_conntrack_timestamp")
            throw Problem(
                kind: .orderUnavailable,
                detail:
                    "The kernel does not \(what), so there is no \(order.rawValue) first: set net.netfilter.\(name) to 1 for the connections to come, or leave the order out."
            )
        }
        // A connection without a time began before the kernel recorded them: it is older than all that have one.
        func precedes(_ one: Candidate?, _ other: Candidate?) -> Bool {
            switch order {
            case .oldest: one?.startedAt ?? 0 < other?.startedAt ?? 0
            case .newest: one?.startedAt ?? 0 > other?.startedAt ?? 0
            case .busiest: one?.octets ?? 0 > other?.octets ?? 0
            }
        }
        return keys.sorted { precedes(found[$0], found[$1]) }
    }
}

/// What is known of a session that a drain might move.
private struct Candidate {
    /// When its oldest connection began, in nanoseconds since 1970.
    var startedAt: UInt64?
    /// What its connections have carried, both directions.
    var octets: UInt64?

    mutating func add(_ entry: ConnectionEntry) {
        if let began = entry.startedAt { startedAt = min(startedAt ?? began, began) }
        if let original = entry.originalCount, let reply = entry.replyCount {
            octets = (octets ?? 0) + original.octets + reply.octets
        }
    }
}
