// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Spoofer
internal import Wire

extension Coordinator {
    // MARK: - Reset handshakes

    /// Begins the handshakes of a migration, both ends in parallel.
    func reset(
        _ connections: [LocatedConnection], client: Bool, of running: RunningMigration
    ) -> MigrationMachine.Event? {
        var segments: [TCPSegment] = []
        let transits = sessions[running.machine.request.session]?.transits ?? [:]
        for connection in connections {
            // The client comes first: it is without its server until it has been reset.
            if transits[connection.clientSide] == nil {
                loop.next { self.advance(running, .clientReset(connection, .reconnected)) }
            } else if client {
                segments += beginHandshake(connection.clientSide.reversed, .client, connection, running)
            } else if let probe = running.machine.passiveProbe(for: connection) {
                passives[connection.clientSide] = PassiveRelay(
                    tuple: probe, migration: running.machine.id, connection: connection, isFromClient: true)
                passives[probe.reversed] = PassiveRelay(
                    tuple: connection.clientSide.reversed, migration: running.machine.id, connection: connection,
                    isFromClient: false)
            }
            if transits[connection.serverSide.reversed]?.transit == .frozen {
                segments += beginHandshake(connection.serverSide, .server, connection, running)
            } else {
                // A migration that is taken up again: this end had been dealt with.
                loop.next { self.advance(running, .serverReset(connection, .proven)) }
            }
        }
        pending.challenges += segments
        if !connections.isEmpty { running.note("challenged", client ? "from-host and client" : "from-host") }
        return nil
    }

    private func beginHandshake(
        _ tuple: FourTuple, _ kind: ResetHandshake.Order.Kind, _ connection: LocatedConnection,
        _ running: RunningMigration
    ) -> [TCPSegment] {
        var policy = ResetHandshake.Policy()
        policy.timeout = UInt64(configuration.resetTimeout) * 1_000_000
        let order = ResetHandshake.Order(tuple: tuple, kind: kind, state: connection.phase.hint)
        var generator = SystemRandomNumberGenerator()
        let handshake = RunningHandshake(
            ResetHandshake(order, policy: policy, seed: generator.next()), migration: running.machine.id,
            connection: connection, isTowardsClient: kind == .client)
        endHandshake(tuple.reversed)
        handshakes[tuple.reversed] = handshake
        return carryOut(handshake.handshake.start(at: EventLoop.now), of: handshake)
    }

    /// Takes what a handshake wants done: returns what is to be sent, reports what it has found out.
    private func carryOut(_ actions: [ResetHandshake.Action], of running: RunningHandshake) -> [TCPSegment] {
        var segments: [TCPSegment] = []
        var result: MigrationMachine.ResetResult?
        for action in actions {
            switch action {
            case .send(let segment): segments.append(segment)
            case .finish(.proven): result = .proven
            case .finish(.unproven): result = .unproven
            case .finish(.reconnected): result = .reconnected
            }
        }
        if let timer = running.timer { loop.cancel(timer) }
        running.timer = running.handshake.deadline.map { deadline in
            loop.schedule(at: deadline) {
                self.send(self.carryOut(running.handshake.deadlinePassed(at: EventLoop.now), of: running))
            }
        }
        if let migration = migrations[running.migration] {
            let report = running.handshake.report
            migration.sent[running.handshake.order.tuple] = (report.challenges, report.resets)
            if let result { handshakeEnded(running, result, of: migration) }
        }
        return segments
    }

    private func handshakeEnded(
        _ running: RunningHandshake, _ result: MigrationMachine.ResetResult, of migration: RunningMigration
    ) {
        let who = running.isTowardsClient ? "client" : "from-host"
        switch result {
        case .proven: migration.note("\(who) reset", "proven")
        case .unproven: migration.note("\(who) silent", "its reset is unproven")
        case .reconnected: migration.note("\(who) reconnects")
        case .leaving: break  // said by the machine, not by a handshake
        }
        // A turn of the loop later: what is to be sent goes first.
        loop.next {
            self.advance(
                migration,
                running.isTowardsClient
                    ? .clientReset(running.connection, result) : .serverReset(running.connection, result))
        }
    }

    func endHandshake(_ observed: FourTuple) {
        guard let running = handshakes.removeValue(forKey: observed) else { return }
        if let timer = running.timer { loop.cancel(timer) }
    }

    /// Sends segments in somebody's name. A host that cannot be reached is no error here: silence is an answer too.
    func send(_ segments: [TCPSegment]) {
        for error in gateway.sockets.send(segments) { logger.warning("\(error)") }
    }

    // MARK: - What the queues have observed

    /// Takes one segment. Returns what is to be sent in answer.
    func observe(_ observation: Observation) -> [TCPSegment] {
        let segment = observation.segment
        if observation.opensConnection, observePassing(segment.tuple) { return [] }
        if segment.flags.opensConnection, let key = session(of: segment.tuple)?.key {
            commit(before: key)
            return []
        }
        if let relay = passives[segment.tuple] { showToOtherSide(segment, relay) }
        guard let running = handshakes[segment.tuple] else { return [] }
        let first = running.handshake.report.firstAnswer == nil
        let answers = carryOut(running.handshake.observed(segment, at: EventLoop.now), of: running)
        if first, running.handshake.report.firstAnswer != nil, let migration = migrations[running.migration] {
            migration.note(
                running.isTowardsClient ? "client answered" : "from-host answered",
                "seq \(segment.sequence) ack \(segment.acknowledgement)")
        }
        shareNumbers(of: segment, with: running)
        return answers
    }

    /// What one end reveals helps to challenge the other.
    private func shareNumbers(of segment: ObservedSegment, with running: RunningHandshake) {
        guard segment.flags.contains(.ack), !segment.flags.contains(.rst) else { return }
        let other =
            running.isTowardsClient ? running.connection.serverSide.reversed : running.connection.clientSide
        handshakes[other]?.handshake.learned(
            peerNext: segment.nextSequence, peerExpects: segment.acknowledgement, timestamps: segment.timestamps)
    }

    /// A SYN has passed. False when it is of no session. Comes thousands of times a second, and mostly says nothing but how
    /// its host will answer; so a session is neither looked up twice nor copied while it learns.
    private func observePassing(_ tuple: FourTuple) -> Bool {
        if !pending.switching.isEmpty, let key = session(of: tuple)?.key { commit(before: key) }
        guard let opening = opening(tuple) else { return false }
        if let reply = opening.reply { learn(reply.tuple, of: reply.session) }
        if opening.isNews, let session = sessions[opening.session] { observeOpening(tuple, session) }
        return true
    }

    /// Whose connection a SYN from client to home opens, whether anybody waits for it, and how the host answers it where it
    /// is rewritten. That is not journaled: the kernel's table holds it too, and a new daemon reads it from there.
    private func opening(
        _ tuple: FourTuple
    ) -> (session: SessionKey, isNews: Bool, reply: (tuple: FourTuple, session: SessionKey)?)? {
        guard let session = session(of: tuple) else { return nil }
        let isStopped = session.transits[tuple] != nil
        let isUnfinished = latest[session.key].flatMap { migrations[$0] }.map { $0.finishedAt == nil } ?? false
        let bound = isStopped ? boundSession(of: tuple.source, home: tuple.destination) : session
        var reply: (tuple: FourTuple, session: SessionKey)?
        if let bound, let binding = bound.binding, binding.datapath == .queue {
            let answer = bound.hostSide?.reversed ?? FourTuple(source: binding.host, destination: tuple.source)
            reply = (answer, bound.key)
        }
        return (session.key, isStopped || session.isFollowing || isUnfinished, reply)
    }

    /// A client opens its next connection: to the session's host, if the packet path let it pass.
    func observeOpening(_ tuple: FourTuple, _ session: Session) {
        if session.isFollowing { given[session.id] = EventLoop.now }
        // What stood in the way of this very tuple ends, whichever migration it was of.
        let owner = session.transits[tuple].map(\.migration) ?? latest[session.key]
        guard let owner, let running = migrations[owner] else { return }
        // Later connections of a session that has moved are nobody's news.
        if running.machine.isFinished, session.transits[tuple] == nil { return }
        if !running.machine.reconnected.contains(tuple) {
            running.note("client reconnects", "from port \(tuple.source.port)")
        }
        advance(running, .reconnecting(tuple))
    }

    // MARK: - Passive mode

    /// Shows a stopped segment to the other side, header only: the to-host has no such connection and answers with a RST
    /// at the client's own number, which then reaches the client in the home's name (RFC 9293 section 3.10.7.1).
    private func showToOtherSide(_ segment: ObservedSegment, _ relay: PassiveRelay) {
        if relay.isFromClient {
            guard segment.flags.contains(.ack), !segment.flags.contains(.syn), !segment.flags.contains(.rst) else {
                return
            }
        } else {
            guard segment.flags.contains(.rst) else { return }
        }
        let now = EventLoop.now
        // One answer is enough: a second one could meet the next connection.
        guard relay.lastShown == 0 || now - relay.lastShown > 200_000_000 else { return }
        passives[segment.tuple]?.lastShown = now
        send([
            TCPSegment(
                tuple: relay.tuple, sequence: segment.sequence, acknowledgement: segment.acknowledgement,
                flags: segment.flags.intersection([.ack, .rst]), window: segment.window)
        ])
        guard relay.lastShown == 0, let migration = migrations[relay.migration] else { return }
        migration.note(relay.isFromClient ? "client spoke" : "to-host answered", "\(segment.flags)")
        // The client has been told, by somebody who cannot be asked for a proof.
        if !relay.isFromClient { advance(migration, .clientReset(relay.connection, .unproven)) }
    }

    // MARK: - Conntrack's events

    /// Listens for new connections while a migration waits for one.
    func openEvents() throws {
        let subscription = try events ?? ConntrackEvents(ends: false)
        events = subscription
        watchEvents(subscription)
    }

    private func watchEvents(_ subscription: ConntrackEvents) {
        loop.watch(subscription.fileDescriptor) {
            self.drainEvents()
            // Every connection of the gateway makes events. While no migration waits for one, they may wait.
            guard self.awaitingReconnect.isEmpty else { return }
            self.loop.forget(subscription.fileDescriptor)
            self.loop.schedule(at: EventLoop.now + 20_000_000) {
                if self.events === subscription { self.watchEvents(subscription) }
            }
        }
    }

    func closeEvents() {
        guard let subscription = events else { return }
        announced.miss()
        loop.forget(subscription.fileDescriptor)
        events = nil
    }

    /// Stops listening when no migration has waited for a while. Not at once: the kernel takes tens of milliseconds to
    /// end a subscription (it waits for RCU), which the next migration would have to wait for too.
    func closeEventsWhenIdle() {
        loop.schedule(at: EventLoop.now + 4_000_000_000) {
            if self.awaitingReconnect.isEmpty, !self.isWatchingCanary { self.closeEvents() }
        }
    }

    func drainEvents() {
        guard let events else { return }
        var seen: [ConntrackEvent] = []
        do {
            try events.drain { seen.append($0) }
        } catch {
            logger.warning("\(error)")
        }
        for event in seen {
            switch event {
            case .new(let entry):
                announced.append(entry)
                observeConntrack(entry)
            case .updated(let entry):
                observeConntrack(entry)
                observeCanary(entry)
            case .lost: announced.miss()
            case .destroyed: break
            }
        }
    }

    /// A connection that conntrack has seen: is it the next one of a session that waits?
    private func observeConntrack(_ entry: ConnectionEntry) {
        // Behind a translated source port its client is known by the session that has it there.
        let client = sessions.session(hostSide: entry.original)?.key.clientEndpoint ?? entry.original.source
        for id in awaitingReconnect.ids(of: client) {
            guard let running = migrations[id] else { continue }
            let key = running.machine.request.session
            guard key.covers(client), let session = sessions[key] ?? running.machine.session as Session? else {
                continue
            }
            let original = FourTuple(source: client, destination: key.home)
            // The old connection's entry has another host, so it cannot be taken for the next one.
            if let binding = session.binding {
                guard entry.reply.source == binding.host else { continue }
                let isOwn =
                    binding.datapath == .kernel
                    ? entry.original.destination == key.home
                    : entry.original == session.hostSide ?? FourTuple(source: client, destination: binding.host)
                guard isOwn else { continue }
            } else {
                guard entry.original.destination == key.home, entry.reply.source != running.machine.fromHost else {
                    continue
                }
            }
            if entry.state == .established {
                if !running.machine.established.contains(original) {
                    running.note("established", "\(client) with \(entry.reply.source)")
                }
                advance(running, .established(original))
            } else if !running.machine.reconnected.contains(original), entry.state == .synSent {
                running.note("client reconnects", "from port \(original.source.port)")
                advance(running, .reconnecting(original))
            }
        }
    }
}

extension ConnectionPhase {
    /// What the handshake has to know of the connection it is to end.
    fileprivate var hint: ResetHandshake.Order.ConnectionState {
        switch self {
        case .opening: .synSent
        case .halfOpen: .synReceived
        case .established, .closing, .closed: .established
        case .leaving: .leaving
        }
    }
}
