// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Migration
internal import Rewriter
internal import Wire

// Sessions of several scopes can cover one connection: the narrowest binding decides.
extension Coordinator {
    /// The session that a client's segment (client → home) belongs to: the one that stops it, or else the one that is
    /// bound.
    func session(of tuple: FourTuple) -> Session? {
        var found: Session?
        for key in SessionKey.covering(tuple) {
            guard let session = sessions[key] else { continue }
            if session.transits[tuple] != nil { return session }
            if found == nil || found?.binding == nil && session.binding != nil { found = session }
        }
        return found
    }

    /// The session whose binding decides where a connection of this client goes.
    func boundSession(of client: Endpoint, home: Endpoint) -> Session? {
        sessions.boundSession(of: client, home: home)
    }

    /// The session that serves the clients of `key` now: its own, or the service's where it has no binding.
    func servingSession(of key: SessionKey) -> Session? {
        if let own = sessions[key], own.binding != nil { return own }
        let service = sessions[SessionKey(client: nil, clientPort: nil, home: key.home)]
        return service?.binding == nil ? sessions[key] : service
    }

    /// Whether a connection that `key` covers belongs to a narrower binding, and so stays where it is.
    func isKeptOut(_ client: Endpoint, of key: SessionKey) -> Bool {
        guard key.scope == .service, let bound = boundSession(of: client, home: key.home) else { return false }
        return bound.key != key
    }

    /// A binding of another scope because of which a request cannot be carried out.
    ///
    /// A service's binding and narrower ones stand beside each other. But a narrower one cannot name the home as its host,
    /// so while the service is elsewhere, none of its clients can be sent home alone.
    func bindingOfOtherScope(_ request: MigrationRequest) -> Scope? {
        let key = request.session
        if key.scope != .service, request.to == nil,
            sessions[SessionKey(client: nil, clientPort: nil, home: key.home)]?.binding != nil
        {
            return .service
        }
        switch key.scope {
        case .connection:
            // The SYNs of a client with a bound connection wait for a decision, and user space cannot carry them for a
            // wider binding as well.
            let service = sessions[SessionKey(client: nil, clientPort: nil, home: key.home)]
            if request.to != nil, service?.binding?.datapath == .queue { return .service }
            let wider = SessionKey(client: key.client, clientPort: nil, home: key.home)
            return sessions[wider]?.binding == nil ? nil : .client
        case .client:
            let narrower = sessions.sessions(of: key.client).contains {
                $0.key.client == key.client && $0.key.home == key.home && $0.key.clientPort != nil && $0.binding != nil
            }
            return narrower ? .connection : nil
        case .service:
            guard request.to != nil, request.datapath == .queue else { return nil }
            return sessions.values.contains { $0.key.home == key.home && $0.isFollowing } ? .connection : nil
        }
    }
}
