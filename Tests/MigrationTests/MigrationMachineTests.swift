// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Rewriter
import Ruleset
import Testing
import Wire

@Suite struct MigrationMachineTests {
    @Test func `the steps come in the order that cannot leak`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.tell(.requested)
        #expect(
            driver.effects == [
                "locate", "check \(Cast.b)", "locate", "place", "install", "forget", "install", "reset both",
            ])
        #expect(driver.machine.isSwitched)
        #expect(!driver.machine.isFinished)
    }

    @Test func `the source port that was found is the session's`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b, datapath: .queue))
        driver.sourcePort = 50_000
        driver.tell(.requested)
        #expect(driver.machine.session.binding?.sourcePort == 50_000)
    }

    @Test func `where no source port is free nothing is changed`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b, datapath: .queue))
        _ = driver.machine.handle(.requested, at: 0)
        _ = driver.machine.handle(.located([Cast.connection]), at: 0)
        _ = driver.machine.handle(.checked(.listening([Cast.b])), at: 0)
        _ = driver.machine.handle(.located([Cast.connection]), at: 0)
        let failure = MigrationFailure.noSourcePort(Cast.key(.connection), host: Cast.b)
        driver.tell(.placeFailed(failure))
        #expect(driver.machine.outcome == .failed(failure))
        #expect(driver.changes.isEmpty && !driver.machine.isSwitched)
    }

    @Test func `of a range of ports only those that listen are left to choose from`() {
        let ports = (8080...8083 as ClosedRange<UInt16>).map { Endpoint(address: Cast.b.address, port: $0) }
        var request = Cast.request(to: Cast.b)
        request.candidates = ports
        #expect(request.destinationText == "198.51.100.2:8080-8083")
        var driver = MigrationDriver(request)
        driver.check = .listening([ports[2], ports[3]])
        driver.tell(.requested)
        #expect(driver.effects.contains("check " + ports.map { "\($0)" }.joined(separator: " ")))
        #expect(driver.machine.session.host == ports[2])
        #expect(driver.machine.request.to == ports[2] && driver.machine.request.destinationText == "\(ports[2])")
        var session = Session(key: Cast.key(.connection))
        session.binding = Binding(host: ports[1], datapath: .kernel)
        var again = MigrationDriver(request, session: session)
        again.tell(.requested)
        #expect(again.machine.outcome == .failed(.alreadyThere(Cast.key(.connection), host: ports[1])))
    }

    @Test func `a home that sees another session under the client's port sees this one under another`() {
        var session = Session(key: Cast.key(.connection))
        session.binding = Binding(host: Cast.b, datapath: .kernel)
        var driver = MigrationDriver(Cast.request(to: nil), session: session)
        driver.sourcePort = 50_000
        driver.tell(.requested)
        #expect(driver.machine.session.isDirect)
        #expect(driver.machine.session.binding?.datapath == .queue)
        driver = MigrationDriver(Cast.request(to: nil), session: driver.machine.session)
        driver.tell(.requested)
        #expect(driver.machine.outcome == .failed(.alreadyThere(Cast.key(.connection), host: Cast.home)))
    }

    @Test func `in passive mode a segment is shown from a port that is free at the to-host`() throws {
        var driver = MigrationDriver(Cast.request(to: Cast.b, passive: true))
        _ = driver.machine.handle(.requested, at: 0)
        _ = driver.machine.handle(.located([Cast.connection]), at: 0)
        _ = driver.machine.handle(.checked(.listening([Cast.b])), at: 0)
        _ = driver.machine.handle(.located([Cast.connection]), at: 0)
        var placement = Placement(host: Cast.b)
        placement.probePorts = [Cast.connection.clientSide: 50_000]
        driver.tell(.placed(placement))
        let probe = try #require(driver.machine.passiveProbe(for: driver.machine.connections[0]))
        #expect(probe.source == Cast.endpoint("192.0.2.9:50000"))
        #expect(driver.machine.session.transits[probe.reversed]?.transit == .awaitingSYN)
    }

    private func prepared(to host: Endpoint?, session: Session? = nil) -> MigrationDriver {
        var request = Cast.request(to: host)
        request.prepares = true
        return MigrationDriver(request, session: session)
    }

    @Test func `the to-host is prepared before it is asked, and the connections are looked at again`() {
        var driver = prepared(to: Cast.b)
        driver.tell(.requested)
        #expect(
            driver.effects == [
                "locate", "prepare", "check \(Cast.b)", "locate", "place", "install", "forget", "install", "reset both",
            ])
    }

    @Test func `a preparation that fails leaves everything as it was`() {
        var driver = prepared(to: Cast.b)
        driver.preparation = .prepareFailed(reason: "no room")
        driver.tell(.requested)
        #expect(driver.machine.outcome == .failed(.notPrepared(Cast.key(.connection), reason: "no room")))
        #expect(driver.changes.isEmpty)
        #expect(!driver.machine.isSwitched)
    }

    @Test func `a preparation may choose another host, but not the present one`() {
        var driver = prepared(to: Cast.b)
        driver.preparation = .prepared(to: Cast.d)
        driver.tell(.requested)
        #expect(driver.effects.contains("check \(Cast.d)"))
        #expect(driver.machine.session.binding?.host == Cast.d)
        #expect(driver.machine.request.to == Cast.d)
        var same = prepared(to: Cast.b)
        same.preparation = .prepared(to: Cast.home)
        same.tell(.requested)
        #expect(same.machine.outcome == .failed(.alreadyThere(Cast.key(.connection), host: Cast.home)))
    }

    @Test func `the way home is prepared too, and connections that have gone meanwhile are not moved`() {
        var bound = Session(key: Cast.key(.connection))
        bound.binding = Binding(host: Cast.b, datapath: .kernel)
        var home = prepared(to: nil, session: bound)
        home.tell(.requested)
        #expect(home.effects.starts(with: ["locate", "prepare", "locate", "place", "install"]))
        var driver = prepared(to: Cast.b)
        driver.preparation = nil
        driver.tell(.requested)
        driver.found = []
        driver.tell(.prepared(to: nil))
        #expect(driver.machine.outcome == .failed(.unknownConnection(Cast.key(.connection))))
    }

    @Test func `a newer migration takes the place of one that is being prepared`() {
        var driver = prepared(to: Cast.b)
        driver.preparation = nil
        driver.tell(.requested)
        driver.tell(.superseded)
        #expect(driver.machine.outcome == .failed(.superseded(Cast.key(.connection))))
        driver.tell(.prepared(to: nil))
        #expect(driver.changes.isEmpty)
    }

    @Test func `what the policy refuses is not even looked up`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.tell(.refused(.home(Cast.home)))
        #expect(driver.machine.outcome == .failed(.refused(.home(Cast.home))))
        #expect(driver.effects.count == 1)
    }

    @Test func `a connection that nobody knows is refused and nothing is installed`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.found = []
        driver.tell(.requested)
        #expect(driver.machine.outcome == .failed(.unknownConnection(Cast.key(.connection))))
        #expect(driver.changes.isEmpty)
    }

    @Test func `a host that does not listen is refused and nothing is installed`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.check = .failed(reason: "connection refused")
        driver.tell(.requested)
        #expect(driver.machine.outcome == .failed(.hostNotListening(Cast.b, reason: "connection refused")))
        #expect(driver.changes.isEmpty)
    }

    @Test func `the present host is refused as to-host`() {
        var driver = MigrationDriver(Cast.request(to: Cast.home))
        driver.tell(.requested)
        #expect(driver.machine.outcome == .failed(.alreadyThere(Cast.key(.connection), host: Cast.home)))
        var bound = Session(key: Cast.key(.connection))
        bound.binding = Binding(host: Cast.b, datapath: .kernel)
        var again = MigrationDriver(Cast.request(to: Cast.b), session: bound)
        again.tell(.requested)
        #expect(again.machine.outcome == .failed(.alreadyThere(Cast.key(.connection), host: Cast.b)))
    }

    @Test func `a session at home cannot return home`() {
        var driver = MigrationDriver(Cast.request(to: nil))
        driver.tell(.requested)
        #expect(driver.machine.outcome == .failed(.alreadyThere(Cast.key(.connection), host: Cast.home)))
    }

    @Test func `what the kernel refuses is taken back`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.installSucceeds = false
        driver.tell(.requested)
        #expect(driver.machine.session == Session(key: Cast.key(.connection)))
        #expect(!driver.machine.isSwitched)
        #expect(!driver.effects.contains("forget"))
    }

    @Test func `a migration is proven when both ends are reset and the client is back`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.tell(.requested)
        driver.tell(.serverReset(Cast.connection, .proven))
        #expect(!driver.machine.isFinished)
        driver.tell(.clientReset(Cast.connection, .proven))
        #expect(!driver.machine.isFinished)
        #expect(driver.machine.deadline != nil)
        driver.tell(.established(Cast.connection.clientSide))
        #expect(driver.machine.outcome == .proven)
    }

    @Test func `a client that has closed its end is neither reset nor awaited`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        var leaving = Cast.connection
        leaving.phase = .leaving
        driver.found = [leaving]
        driver.tell(.requested)
        #expect(driver.machine.clientResult(leaving) == .leaving)
        #expect(driver.machine.outcome == nil)
        driver.tell(.serverReset(leaving, .proven))
        #expect(driver.machine.outcome == .proven)
    }

    @Test func `a service without clients can be bound, a client without connections cannot`() {
        let key = SessionKey(client: nil, clientPort: nil, home: Cast.home)
        for datapath in Datapath.allCases {
            var driver = MigrationDriver(
                MigrationRequest(session: key, to: Cast.b, datapath: datapath, passive: false))
            driver.found = []
            driver.tell(.requested)
            #expect(driver.machine.outcome == .proven)
            let elements = driver.machine.session.elements().keys
            #expect(elements.contains(.service(home: Cast.home, host: Cast.b)) == (datapath == .kernel))
            #expect(elements.contains(.divertService(home: Cast.home)) == (datapath == .queue))
        }
    }

    @Test func `a kernel binding passes the queue that a wider one brings it into`() {
        var session = Session(key: Cast.key(.client))
        session.binding = Binding(host: Cast.b, datapath: .kernel)
        #expect(session.flows() == [FlowKey(stage: .prerouting, tuple: session.key.original): .passage(.pass)])
        #expect(SessionKey.covering(Cast.connection.clientSide).map(\.scope) == [.connection, .client, .service])
        let client = Endpoint(address: Cast.client.address, port: 1)
        #expect(SessionKey.covering(Cast.connection.clientSide).map { $0.covers(client) } == [false, true, true])
    }

    @Test func `a client that does not come back is waited for once, then reported without`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.tell(.requested)
        driver.tell(.serverReset(Cast.connection, .proven))
        driver.tell(.clientReset(Cast.connection, .proven))
        driver.tell(.deadlinePassed)
        #expect(driver.machine.outcome == .proven)
        #expect(driver.machine.deadline == nil)
    }

    @Test func `a silent from-host leaves the outcome unproven and the kernel on guard`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.tell(.requested)
        driver.tell(.clientReset(Cast.connection, .proven))
        driver.tell(.serverReset(Cast.connection, .unproven))
        driver.tell(.established(Cast.connection.clientSide))
        #expect(driver.machine.outcome == .unproven)
        let fromHost = Cast.connection.serverSide.reversed
        #expect(driver.machine.session.transits[fromHost]?.transit == .guarded)
        #expect(driver.machine.session.transits[fromHost]?.lifetime == 86_400)
        #expect(driver.machine.session.elements()[.guard(fromHost)] == .some(.some(86_400)))
        #expect(driver.machine.session.elements()[.guarded(fromHost.reversed)] == .some(.some(86_400)))
    }

    @Test func `the client's SYN opens its way and ends what is sent to it`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        driver.tell(.requested)
        #expect(driver.machine.session.transits[Cast.connection.clientSide]?.transit == .awaitingSYN)
        driver.tell(.reconnecting(Cast.connection.clientSide))
        #expect(driver.effects.contains("leave client alone"))
        #expect(driver.machine.session.transits[Cast.connection.clientSide] == nil)
        #expect(driver.machine.clientResult(Cast.connection) == .reconnected)
    }

    @Test func `a SYN from another port leaves the old port's transit standing`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b, scope: .client))
        driver.tell(.requested)
        var other = Cast.connection.clientSide
        other.source.port = 40001
        driver.tell(.reconnecting(other))
        #expect(driver.machine.session.transits[Cast.connection.clientSide] != nil)
        #expect(!driver.effects.contains("leave client alone"))
    }

    @Test func `passive mode sends nothing to the client and does not wait for it`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b, passive: true))
        driver.tell(.requested)
        #expect(driver.effects.last == "reset from-host")
        let probe = FourTuple(source: Cast.client, destination: Cast.b)
        #expect(driver.machine.passiveProbe(for: Cast.connection) == probe)
        #expect(driver.machine.session.transits[probe.reversed]?.transit == .awaitingSYN)
        driver.tell(.serverReset(Cast.connection, .proven))
        #expect(driver.machine.outcome == .proven)
    }

    @Test func `a connection that is opened during the check is moved too, and one that is gone is not`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b, scope: .client))
        var second = Cast.connection
        second.clientSide.source.port = 40001
        second.serverSide.source.port = 40001
        _ = driver.machine.handle(.requested, at: 0)
        _ = driver.machine.handle(.located([Cast.connection]), at: 0)
        _ = driver.machine.handle(.checked(.listening([Cast.b])), at: 0)
        _ = driver.machine.handle(.located([second]), at: 0)
        _ = driver.machine.handle(.placed(Placement(host: Cast.b)), at: 0)
        #expect(driver.machine.connections == [second])
        #expect(driver.machine.session.transits[second.clientSide]?.transit == .frozen)
        #expect(driver.machine.session.transits[Cast.connection.clientSide] == nil)
    }

    @Test func `a newer migration takes over only before the switch`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b))
        _ = driver.machine.handle(.requested, at: 0)
        _ = driver.machine.handle(.superseded, at: 0)
        #expect(driver.machine.outcome == .failed(.superseded(Cast.key(.connection))))
        var switched = MigrationDriver(Cast.request(to: Cast.b))
        switched.tell(.requested)
        switched.tell(.superseded)
        #expect(switched.machine.outcome == .superseded)
        #expect(switched.machine.isSwitched)
        #expect(!switched.machine.session.transits.isEmpty)
    }

    @Test func `on the way home the guard against home falls in the same change`() throws {
        var out = MigrationDriver(Cast.request(to: Cast.b))
        out.tell(.requested)
        out.tell(.serverReset(Cast.connection, .proven))
        out.tell(.reconnecting(Cast.connection.clientSide))
        out.tell(.established(Cast.connection.clientSide))
        let guardedHome = Cast.connection.serverSide.reversed
        #expect(out.machine.session.transits[guardedHome]?.transit == .guarded)
        var back = MigrationDriver(Cast.request(to: nil), session: out.machine.session)
        back.found = [
            LocatedConnection(
                clientSide: Cast.connection.clientSide,
                serverSide: FourTuple(source: Cast.client, destination: Cast.b), phase: .established)
        ]
        back.tell(.requested)
        let change = try #require(back.changes.first)
        #expect(change.removedElements.contains(.guard(guardedHome)))
        #expect(change.removedElements.contains(.connection(Cast.connection.clientSide, host: Cast.b)))
        #expect(back.machine.session.binding == nil)
    }

    @Test func `an undone change is the same change the other way round`() {
        for datapath in Datapath.allCases {
            for scope in Scope.allCases {
                var driver = MigrationDriver(Cast.request(to: Cast.b, scope: scope, datapath: datapath))
                let before = driver.machine.session
                driver.tell(.requested)
                let after = driver.machine.session
                let done = SessionChange(from: before, to: after)
                let undone = SessionChange(from: after, to: before)
                #expect(Set(done.addedElements.map(\.element)) == Set(undone.removedElements))
                #expect(Set(done.setFlows.map(\.key)) == Set(undone.removedFlows))
                #expect(undone.addedElements.isEmpty && undone.setFlows.isEmpty)
            }
        }
    }

    @Test func `replies that stay are no part of a change, what they stood for goes with the binding`() {
        var bound = Session(key: SessionKey(client: nil, clientPort: nil, home: Cast.home))
        bound.binding = Binding(host: Cast.b, datapath: .queue)
        let reply = FourTuple(source: Cast.b, destination: Cast.client)
        bound.replies = [reply]
        var stopping = bound
        stopping.transits[Cast.connection.clientSide] = StandingTransit(
            transit: .frozen, host: Cast.home, lifetime: 60, migration: 1)
        let stop = SessionChange(from: bound, to: stopping)
        #expect(stop.removedElements.isEmpty)
        #expect(stop.addedElements.map(\.element) == [.divert(Cast.connection.clientSide)])
        var unbound = bound
        unbound.binding = nil
        let end = SessionChange(from: bound, to: unbound)
        #expect(end.removedElements.contains(.icmpPeer(Cast.client.address)))
        #expect(!end.removedElements.contains(.reply(reply)))
        unbound.replies = []
        #expect(SessionChange(from: bound, to: unbound).removedElements.contains(.reply(reply)))
    }

    @Test func `what user space has said of a connection ends with the binding, of many connections for all of them`() {
        let keys = [
            SessionKey(client: Cast.client.address, clientPort: Cast.client.port, home: Cast.home),
            SessionKey(client: Cast.client.address, clientPort: nil, home: Cast.home),
            SessionKey(client: nil, clientPort: nil, home: Cast.home),
        ]
        for key in keys {
            let none = Session(key: key)
            var (onB, onD) = (none, none)
            onB.binding = Binding(host: Cast.b, datapath: .queue)
            onD.binding = Binding(host: Cast.d, datapath: .queue)
            for (from, to) in [(none, onB), (onB, onD), (onD, none)] {
                let change = SessionChange(joining: [SessionChange(from: from, to: to)])
                #expect(change.turned == (key.scope == .connection ? [key.original] : []))
                #expect(change.turnedHomes == (key.scope == .connection ? [] : [Cast.home.address]))
            }
            var stopped = onB
            stopped.transits[Cast.connection.clientSide] = StandingTransit(
                transit: .frozen, host: Cast.home, lifetime: 60, migration: 1)
            let change = SessionChange(from: onB, to: stopped)
            #expect(change.turned == [] && change.turnedHomes == [])
            // Nor is one carried to a host whose answers are not.
            var answered = onB
            answered.replies = [FourTuple(source: Cast.b, destination: Cast.client)]
            let end = SessionChange(from: answered, to: onB)
            #expect(end.turned == (key.scope == .connection ? [] : [Cast.connection.clientSide]))
        }
    }

    @Test func `the queue datapath's binding outlives its transit on the same four-tuple`() {
        var driver = MigrationDriver(Cast.request(to: Cast.b, datapath: .queue))
        driver.tell(.requested)
        let original = Cast.connection.clientSide
        #expect(driver.machine.session.elements()[.divertConnection(original)] == .some(.none))
        let flow = FlowKey(stage: .prerouting, tuple: original)
        #expect(driver.machine.session.flows()[flow] == .awaitSYN(.translateDestination(Cast.b)))
        driver.tell(.reconnecting(original))
        #expect(driver.machine.session.elements()[.divertConnection(original)] == .some(.none))
        #expect(driver.machine.session.flows()[flow] == .passage(.translateDestination(Cast.b)))
        let reply = FlowKey(stage: .postrouting, tuple: FourTuple(source: Cast.b, destination: Cast.client))
        #expect(driver.machine.session.flows()[reply] == .passage(.translateSource(Cast.home)))
    }
}
