// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Logging
internal import Migration
internal import Wire

// Where a session's connections go, and as whose: the host's port, and the client's port as the host sees it. In the kernel
// datapath the kernel's NAT finds another source port where the client's own is taken; user space has to do it itself.
extension Coordinator {
    /// How many source ports are tried before none is taken to be free.
    private static let tries = 512

    /// Chooses one of the to-host's endpoints (none: home), and the source port that it is to see.
    func place(
        _ hosts: [Endpoint], _ connections: [LocatedConnection], of running: RunningMigration
    ) -> MigrationMachine.Event {
        let request = running.machine.request
        let key = request.session
        do {
            var placement = try hosts.isEmpty ? placeHome(key) : place(hosts, connections, request)
            if let port = key.clientPort {
                let source = Endpoint(address: key.clientEndpoint.address, port: placement.sourcePort ?? port)
                let tuple = FourTuple(source: source, destination: placement.host)
                placement.yields = isDecidedElsewhere(tuple, besides: key)
            }
            if request.passive, !hosts.isEmpty {
                placement.probePorts = try probePorts(connections, at: placement.host, besides: key)
            }
            return .placed(placement)
        } catch let failure as MigrationFailure {
            return .placeFailed(failure)
        } catch {
            logger.error("conntrack cannot be read: \(error)", metadata: running.metadata)
            return .placeFailed(.kernelRefused(key, reason: "\(error)"))
        }
    }

    private func place(
        _ hosts: [Endpoint], _ connections: [LocatedConnection], _ request: MigrationRequest
    ) throws -> Placement {
        let key = request.session
        let allowed = hosts.filter { otherHome(of: request, at: $0) == nil }
        guard let first = allowed.first else {
            throw hosts.lazy.compactMap { self.otherHome(of: request, at: $0) }.first
                ?? .noSourcePort(key, host: key.home)
        }
        guard let port = key.clientPort else { return try placeAll(connections, at: allowed, request) }
        let client = Endpoint(address: key.clientEndpoint.address, port: port)
        // Where user space gives another session's segments the name that this one's have when they come, the kernel could not
        // tell the two apart.
        let datapath = isCarried(key.original, besides: key) ? .queue : request.datapath
        if let stated = request.sourcePort {
            let tuple = FourTuple(source: Endpoint(address: client.address, port: stated), destination: first)
            guard try !isTaken(tuple, besides: key) else { throw MigrationFailure.sourcePortTaken(key, tuple) }
            return Placement(host: first, datapath: datapath, sourcePort: stated)
        }
        // Of several ports one where the client's own is free.
        if datapath == .queue || allowed.count > 1 {
            for host in allowed where try !isTaken(FourTuple(source: client, destination: host), besides: key) {
                return Placement(host: host, datapath: datapath)
            }
        }
        guard datapath == .queue else { return Placement(host: first) }
        let free = try freePort(like: client, at: first, besides: key)
        return Placement(host: first, datapath: datapath, sourcePort: free)
    }

    /// Where all connections of a client go, or of all clients. User space gives none of them another source port: a client
    /// that has a connection of its own from the same port stands in the way.
    private func placeAll(
        _ connections: [LocatedConnection], at hosts: [Endpoint], _ request: MigrationRequest
    ) throws -> Placement {
        guard request.datapath == .queue else { return Placement(host: hosts[0]) }
        var obstacle: FourTuple?
        for host in hosts {
            let taken = try connections.lazy.map { FourTuple(source: $0.clientSide.source, destination: host) }
                .first { try self.isTaken($0, besides: request.session) }
            guard let taken else { return Placement(host: host) }
            obstacle = obstacle ?? taken
        }
        throw MigrationFailure.ownConnection(request.session, obstacle ?? request.session.original)
    }

    /// At home a client has its own port, unless a session of the same client to another home has it there.
    private func placeHome(_ key: SessionKey) throws -> Placement {
        guard key.clientPort != nil, isClaimed(key.original, besides: key) else { return Placement(host: key.home) }
        return Placement(
            host: key.home, sourcePort: try freePort(like: key.clientEndpoint, at: key.home, besides: key))
    }

    private func probePorts(
        _ connections: [LocatedConnection], at host: Endpoint, besides key: SessionKey
    ) throws -> [FourTuple: UInt16] {
        var ports: [FourTuple: UInt16] = [:]
        for connection in connections {
            let source = connection.serverSide.source
            guard try isTaken(FourTuple(source: source, destination: host), besides: key) else { continue }
            ports[connection.clientSide] = try freePort(like: source, at: host, besides: key)
        }
        return ports
    }

    /// A port that stands for the client's own at `host`.
    ///
    /// - Throws: `MigrationFailure.noSourcePort`, and what conntrack throws.
    func freePort(like client: Endpoint, at host: Endpoint, besides key: SessionKey) throws -> UInt16 {
        var generator = SystemRandomNumberGenerator()
        for port in SourcePortSearch(for: client.port, seed: generator.next()).prefix(Self.tries) {
            let tuple = FourTuple(source: Endpoint(address: client.address, port: port), destination: host)
            if try !isTaken(tuple, besides: key), !isDecidedElsewhere(tuple, besides: key) { return port }
        }
        throw MigrationFailure.noSourcePort(key, host: host)
    }

    /// The source port of a session's next connection, from `client`, at its host in the queue datapath; nil for its own.
    func sourcePort(of session: Session, from client: Endpoint) throws -> UInt16? {
        guard let binding = session.binding, binding.datapath == .queue else { return nil }
        let tuple = FourTuple(source: client, destination: binding.host)
        guard try isTaken(tuple, besides: session.key) else { return nil }
        return try freePort(like: client, at: binding.host, besides: session.key)
    }

    /// Whether a host has a connection with this four-tuple client → host, or is to have one.
    private func isTaken(_ tuple: FourTuple, besides key: SessionKey) throws -> Bool {
        if isClaimed(tuple, besides: key) || isLeftToKernel(tuple, besides: key) { return true }
        // By its reply a connection is found whatever it is called on the client's side; by its original four-tuple also one
        // whose source the kernel has translated, which conntrack would take ours for.
        let entries = [
            try gateway.conntrack.entry(reply: tuple.reversed), try gateway.conntrack.entry(original: tuple),
        ]
        return entries.contains { $0.map { $0.phase != .closed } ?? false }
    }

    /// Whether another session's host has this four-tuple, as soon as its client comes.
    private func isClaimed(_ tuple: FourTuple, besides key: SessionKey) -> Bool {
        if let holder = pending.hostSides[tuple], holder != key { return true }
        return sessions.session(hostSide: tuple).map { $0.key != key } ?? false
    }

    /// Whether it is user space that gives another session's segments this four-tuple.
    private func isCarried(_ tuple: FourTuple, besides key: SessionKey) -> Bool {
        guard isClaimed(tuple, besides: key) else { return false }
        return sessions.session(hostSide: tuple)?.binding?.datapath != .kernel
    }

    /// Whether segments with this four-tuple are another session's to the kernel: bound by it, or on the way home.
    private func isLeftToKernel(_ tuple: FourTuple, besides key: SessionKey) -> Bool {
        SessionKey.covering(tuple).contains { other in
            guard other != key, let session = sessions[other] else { return false }
            return session.binding.map { $0.datapath == .kernel } ?? (session.transits[tuple] != nil)
        }
    }

    /// Whether another session decides about segments with this four-tuple, as the client sends them.
    private func isDecidedElsewhere(_ tuple: FourTuple, besides key: SessionKey) -> Bool {
        SessionKey.covering(tuple).contains { other in
            guard other != key, let session = sessions[other] else { return false }
            return session.binding != nil || session.transits[tuple] != nil
        }
    }

    // MARK: - Connections of the client's own

    /// Sessions whose host has from them a four-tuple that another session decides about now stop watching for it; where nobody
    /// decides about it any more, they watch for it again.
    func settleWatches(around key: SessionKey) {
        for other in sessions.sessions(atHostOf: key) { settleWatch(of: other) }
    }

    /// Whether another session decides about what this one's host has from it.
    func yields(_ session: Session) -> Bool {
        session.hostSide.map { isDecidedElsewhere($0, besides: session.key) } ?? false
    }

    func settleWatch(of session: Session) {
        let yields = yields(session)
        guard yields != session.yields else { return }
        var next = session
        next.yields = yields
        decide(change: session, to: next)
    }

    /// A client opens a connection of its own with the four-tuple that a host has, or is to have, from one of its sessions.
    /// The one of the two that is not there yet gets another source port.
    func separate(_ tuple: FourTuple, from holder: Session, isThere: Bool) throws {
        guard let binding = holder.binding else { return }
        let port = try freePort(like: tuple.source, at: tuple.destination, besides: holder.key)
        var next = holder
        var changes: [(from: Session, to: Session)] = []
        if isThere {
            let key = SessionKey(
                client: tuple.source.address, clientPort: tuple.source.port, home: tuple.destination)
            lastMigration += 1
            let before = sessions[key] ?? Session(key: key, id: lastMigration)
            var direct = before
            direct.binding = Binding(host: tuple.destination, datapath: .queue, sourcePort: port)
            next.yields = true
            changes = [(holder, next), (before, direct)]
        } else {
            next.binding = Binding(host: binding.host, datapath: binding.datapath, sourcePort: port)
            next.replies.remove(tuple.reversed)
            changes = [(holder, next)]
        }
        try journal.write(changes.map(\.to), insteadOf: [])
        try gateway.install(
            SessionChange(changes), undoneBy: SessionChange(changes.map { (from: $0.to, to: $0.from) }))
        for (from, to) in changes { settle(to, since: from) }
        let which = isThere ? "the client's own connection" : "the next connection of session \(holder.id)"
        logger.notice(
            "\(which) has source port \(port) at \(tuple.destination)", metadata: ["client": "\(tuple.source)"])
    }

    /// Ends translations of clients' own connections that are over. There is no hurry: until then the client's next one is
    /// translated too.
    func watchDirect() {
        guard directTimer == nil, !sessions.direct.isEmpty else { return }
        directTimer = loop.schedule(at: EventLoop.now + UInt64(configuration.lifetimes.guardClient) * 1_000_000_000) {
            self.directTimer = nil
            for key in self.sessions.direct { self.endDirectIfOver(key) }
            self.watchDirect()
        }
    }

    private func endDirectIfOver(_ key: SessionKey) {
        commit(before: key)
        // One whose client may still come back is not over.
        guard let session = sessions[key], session.isDirect, preparing[key] == nil,
            session.transits[session.key.original] == nil
        else { return }
        do {
            if let entry = try gateway.conntrack.entry(original: session.tracked), entry.phase != .closed { return }
        } catch {
            logger.error("\(error)")
            return
        }
        var without = session
        without.binding = nil
        without.replies = []
        decide(change: session, to: without)
        settle(without, since: session)
    }
}
