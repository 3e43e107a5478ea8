// SPDX-License-Identifier: GPL-3.0-or-later

internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Ruleset
internal import Wire

/// What the queue threads have observed, on its way to those whom it concerns.
///
/// A segment that was stopped and a SYN that is held wake the loop. A SYN that has passed does so only when none did lately:
/// then the loop looks by itself, so that a thousand new connections a second cost a hundred turns, not a thousand. All are
/// taken at the beginning of every turn, whatever it is for: nobody decides without what has been observed.
extension Coordinator {
    /// How long a SYN that has passed may wait to be heard of, in nanoseconds.
    private static let patience: UInt64 = 10_000_000

    /// Takes the segments that the queue threads have observed, those that were set aside first.
    ///
    /// Openings come before everything else: a client that has opened its next connection must not be sent a RST for a
    /// segment that it sent before. The stateful packet filter of the client's own would end the new connection.
    func drainObservations() {
        var seen = setAside
        setAside = []
        seen += takeObservations()
        for observation in seen where observation.opensConnection { _ = observe(observation) }
        var segments: [TCPSegment] = []
        for observation in seen where !observation.opensConnection && observation.held == nil {
            segments += observe(observation)
        }
        send(segments)
        decide(about: seen.filter { $0.held != nil })
    }

    /// The same if there are any.
    func lookAtObservations() {
        if gateway.rings.contains(where: { !$0.isEmpty }) { drainObservations() }
    }

    /// What every ring holds.
    func takeObservations() -> [Observation] {
        var seen: [Observation] = []
        for ring in gateway.rings { ring.drain { seen.append($0) } }
        if !seen.isEmpty { hasObserved = true }
        if !isLooking, gateway.rings.contains(where: \.isExpected) { lookLater() }
        return seen
    }

    private func lookLater() {
        isLooking = true
        hasObserved = false
        loop.schedule(at: EventLoop.now + Self.patience) {
            self.isLooking = false
            // This turn has begun with a look.
            if self.hasObserved { return self.lookLater() }
            for ring in self.gateway.rings { ring.rest() }
            self.drainObservations()
        }
    }

    /// What was not heard of since a ring was full is read from the kernel's table: otherwise the connections that such SYNs
    /// have opened would not be found. The same where this daemon had to make the table: the kernel has learnt anew, from any
    /// packet, what connections have that were there before.
    func learnUnheard(before request: MigrationRequest) {
        let lost = gateway.ringOverflows
        let mayBeOlder = mayHaveForgotten && EventLoop.now - askedTable > 1_000_000_000
        do {
            if lost != knownOverflows || mayBeOlder && request.session.scope != .connection {
                sessions.learn(from: try gateway.table.learntElements())
                knownOverflows = lost
                askedTable = EventLoop.now
            } else if mayHaveForgotten, let session = servingSession(of: request.session),
                session.binding?.datapath == .queue, let reply = session.hostSide?.reversed,
                !session.replies.contains(reply), try gateway.table.holds(.reply(reply))
            {
                sessions.learn(reply, of: session.key)
            }
        } catch {
            logger.error("what the kernel has learnt cannot be read: \(error)", metadata: ["lost": "\(lost)"])
        }
    }

    /// After a freeze that every queue thread has acknowledged: a SYN of a frozen four-tuple that still waits to be read
    /// opened the connection which is to end now, and must not be taken for the next one.
    func discardOpenings(of switched: [Session]) {
        let frozen = Set(switched.flatMap { $0.transits.filter { $0.value.transit == .frozen }.keys })
        for observation in takeObservations() {
            let isOld = observation.hasPassed && frozen.contains(observation.segment.tuple)
            if !isOld { setAside.append(observation) }
        }
        if !setAside.isEmpty { loop.next { self.drainObservations() } }
    }
}
