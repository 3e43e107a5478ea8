// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Rewriter
import Ruleset
import Testing
import Wire

@Suite struct ReconnectCreditTests {
    private static let home = endpoint("198.51.100.1:80")
    private static let host = endpoint("198.51.100.2:8080")

    private static func endpoint(_ text: String) -> Endpoint {
        Endpoint(text) ?? Endpoint(address: .v4(IPv4Address(rawValue: 0)), port: 0)
    }

    private static func client(_ port: UInt16) -> Endpoint { endpoint("192.0.2.9:\(port)") }

    private static func tuple(_ port: UInt16) -> FourTuple { FourTuple(source: client(port), destination: home) }

    private static func session(_ id: UInt64, _ port: UInt16, _ datapath: Datapath? = .kernel) -> Session {
        Session(
            key: SessionKey(client: client(port).address, clientPort: port, home: home), id: id,
            binding: datapath.map { Binding(host: host, datapath: $0) })
    }

    /// Whom each SYN goes to: a session's number, `own`, or nil for home.
    private func decide(
        _ credits: inout ReconnectCredits, _ ports: [UInt16], open: Set<UInt16> = [], gone: Set<UInt64>
    ) -> [String] {
        ports.map { port in
            let isOpen = open.contains(port)
            let decision = credits.decide(
                Self.tuple(port), isOpen: isOpen, owes: { gone.contains($0.id) }, place: { _ in nil })
            return switch decision {
            case .own: "own"
            case .follows(let session): "\(session.id)"
            case .unbound: "home"
            }
        }
    }

    @Test func `as many new connections as were lost are taken, the oldest session first`() {
        var credits = ReconnectCredits((1...3).reversed().map { Self.session($0, UInt16(40_000 + $0)) }, tail: 120)
        #expect(
            decide(&credits, [50_001, 50_002, 50_003, 50_004, 50_005], gone: [1, 3]) == [
                "1", "3", "home", "home", "home",
            ])
        let ports = credits.changes.map { [$0.from.key.clientPort, $0.to.key.clientPort] }
        #expect(ports == [[40_001, 50_001], [40_003, 50_002]])
    }

    @Test func `the end of a connection is carried on while its session moves to another host`() {
        var session = Self.session(1, 40_001, .queue)
        let ending = FourTuple(source: Self.host, destination: Self.client(40_001))
        session.replies = [ending]
        session = session.following(to: 40_002, tail: 120)
        session.replies.insert(FourTuple(source: Self.host, destination: Self.client(40_002)))
        let to = Self.endpoint("198.51.100.3:8080")
        let request = MigrationRequest(
            session: session.key, to: to, datapath: .kernel, passive: false, checksHost: false)
        var machine = MigrationMachine(id: 2, request: request, session: session, lifetimes: .init())
        _ = machine.handle(.requested, at: 0)
        _ = machine.handle(.located([]), at: 0)
        _ = machine.handle(.placed(Placement(host: to)), at: 0)
        #expect(machine.session.binding?.host == to)
        #expect(machine.session.replies == [ending])
        var ended = machine.session
        ended.endTransit(of: Self.tuple(40_001))
        #expect(ended.replies.isEmpty)
    }

    @Test func `a SYN from a session's own port takes nothing from the others`() {
        var credits = ReconnectCredits([Self.session(1, 40_001), Self.session(2, 40_002)], tail: 120)
        #expect(decide(&credits, [40_002, 50_001, 50_001, 50_002], gone: [1]) == ["own", "1", "own", "home"])
    }

    @Test func `a SYN that is repeated while its connection opens at home takes nothing`() {
        var credits = ReconnectCredits([Self.session(1, 40_001)], tail: 120)
        #expect(decide(&credits, [50_001, 50_002], open: [50_001], gone: [1]) == ["home", "1"])
    }

    @Test func `a session that home serves owes nothing`() {
        var credits = ReconnectCredits([Self.session(1, 40_001, nil), Self.session(2, 40_002)], tail: 120)
        #expect(decide(&credits, [50_001, 50_002], gone: [1, 2]) == ["2", "home"])
    }

    @Test func `a port that was left is any other port, and what stood on it ends`() {
        var session = Self.session(1, 40_001)
        session.transits[Self.tuple(40_001)] = StandingTransit(
            transit: .awaitingSYN, host: Self.home, lifetime: 120, migration: 1)
        let flow = FlowKey(stage: .prerouting, tuple: Self.tuple(40_001))
        #expect(session.flows()[flow] == .awaitSYN(.pass))
        let next = session.following(to: 50_001, tail: 120)
        #expect(next.flows()[flow] == .awaitDecision)
        #expect(next.elements()[.divert(Self.tuple(40_001))] == .some(120))
        for gone in [[], [2]] as [Set<UInt64>] {
            var credits = ReconnectCredits([next, Self.session(2, 40_002)], tail: 120)
            #expect(decide(&credits, [40_001], gone: gone) == (gone.isEmpty ? ["home"] : ["2"]))
            let first = credits.changes.first { $0.from.id == 1 }
            #expect(first?.to.transits.isEmpty == true)
        }
    }

    @Test(arguments: Datapath.allCases)
    func `a session that follows takes its elements and flows with it`(_ datapath: Datapath) {
        let session = Self.session(1, 40_001, datapath)
        let next = session.following(to: 50_001, tail: 60)
        #expect(next.id == 1 && next.host == session.host && next.key.original == Self.tuple(50_001))
        let credit = TableElement.credit(client: Self.client(1).address, home: Self.home)
        let shared = FlowKey(stage: .prerouting, tuple: Self.tuple(1)).anyPort
        for each in [session, next] {
            #expect(each.elements()[credit] == .some(nil))
            #expect(each.flows()[shared] == .holdSYN(.pass))
        }
        let change = SessionChange([(from: session, to: next)])
        let added = Dictionary(uniqueKeysWithValues: change.addedElements.map { ($0.element, $0.lifetime) })
        switch datapath {
        case .kernel:
            #expect(change.removedElements == [.connection(Self.tuple(40_001), host: Self.host)])
            #expect(added == [.connection(Self.tuple(50_001), host: Self.host): nil])
            // A wider binding may bring the session's packets into a queue, which they pass as they are.
            #expect(change.setFlows.map(\.rule) == [.passage(.pass)])
            #expect(change.removedFlows == [FlowKey(stage: .prerouting, tuple: Self.tuple(40_001))])
        case .queue:
            // The end of the old connection goes on for a while: its FIN must not reach home.
            // The third: the client may open a connection of its own with the host that looks the same there.
            let own = FourTuple(source: Self.client(50_001), destination: Self.host)
            #expect(
                added == [
                    .divertConnection(Self.tuple(50_001)): nil, .divert(Self.tuple(40_001)): 60,
                    .divertConnection(own): nil,
                ])
            let flows = next.flows()
            let old = FlowKey(stage: .prerouting, tuple: Self.tuple(40_001))
            #expect(flows[old] == .holdSYN(.translateDestination(Self.host)))
            for port in [40_001, 50_001] as [UInt16] {
                let reply = FourTuple(source: Self.host, destination: Self.client(port))
                #expect(flows[FlowKey(stage: .postrouting, tuple: reply)] == .passage(.translateSource(Self.home)))
            }
        }
    }

    @Test func `what one session leaves and another takes at once stays`() {
        var credits = ReconnectCredits([Self.session(1, 40_001, .queue), Self.session(2, 40_002, .queue)], tail: 60)
        // Both are gone; the first follows to a new port, the second to the one that the first has left.
        #expect(decide(&credits, [50_001, 40_001], gone: [1, 2]) == ["1", "2"])
        let changes = credits.changes
        let change = SessionChange(changes)
        let flow = FlowKey(stage: .prerouting, tuple: Self.tuple(40_001))
        #expect(!change.removedFlows.contains(flow))
        #expect(changes.first { $0.to.id == 1 }?.to.transits.isEmpty == true)
        #expect(changes.first { $0.to.id == 2 }?.to.flows()[flow] == .passage(.translateDestination(Self.host)))
        let added = change.addedElements.filter { $0.element == .divert(Self.tuple(40_001)) }
        #expect(added.isEmpty || added.count == 1 && added[0].lifetime == nil)
        #expect(
            !change.removedElements.contains(.divert(Self.tuple(40_001))) || added.count == 1)
    }

    @Test func `a learnt reply goes with the end of its connection`() {
        var session = Self.session(1, 40_001, .queue)
        let reply = FourTuple(source: Self.host, destination: Self.client(40_001))
        session.replies = [reply]
        var next = session.following(to: 50_001, tail: 60)
        #expect(next.replies == [reply])
        next.endTransit(of: Self.tuple(40_001))
        #expect(next.replies.isEmpty && next.transits.isEmpty)
    }
}
