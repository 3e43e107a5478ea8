// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Rewriter
import Ruleset
import Testing
import Wire

@Suite struct SourcePortTests {
    private static func endpoint(_ text: String) -> Endpoint {
        Endpoint(text) ?? Endpoint(address: .v4(IPv4Address(rawValue: 0)), port: 0)
    }

    private static let client = endpoint("192.0.2.9:40000")
    private static let home = endpoint("198.51.100.1:80")
    private static let host = endpoint("198.51.100.2:8080")

    private static func session(_ datapath: Datapath, sourcePort: UInt16?) -> Session {
        let key = SessionKey(client: client.address, clientPort: client.port, home: home)
        return Session(
            key: key, id: 1, binding: Binding(host: host, datapath: datapath, sourcePort: sourcePort))
    }

    @Test(arguments: [1, 400, 511, 512, 700, 1023, 1024, 40000, 65535] as [UInt16])
    func `a search visits every port of the kind once, and not the client's own`(_ port: UInt16) {
        for seed in [0, 1, 7_777, .max] as [UInt64] {
            let found = Array(SourcePortSearch(for: port, seed: seed))
            let range = SourcePortSearch.range(like: port)
            #expect(Set(found).count == found.count)
            #expect(Set(found) == Set(range).subtracting([port]))
            #expect(found.allSatisfy { ($0 < 1024) == (port < 1024) })
        }
        let orders = [1, 99_999].map { Array(SourcePortSearch(for: port, seed: $0).prefix(8)) }
        #expect(orders[0] != orders[1])
    }

    @Test func `in the queue datapath both directions carry the other port, and the client's own SYN is held`() {
        let session = Self.session(.queue, sourcePort: 50_000)
        let seen = FourTuple(source: Self.endpoint("192.0.2.9:50000"), destination: Self.host)
        #expect(session.hostSide == seen)
        #expect(session.tracked == seen)
        let flows = session.flows()
        #expect(
            flows[FlowKey(stage: .prerouting, tuple: session.key.original)]
                == .passage(.translateDestination(Self.host, clientPort: 50_000)))
        #expect(
            flows[FlowKey(stage: .postrouting, tuple: seen.reversed)]
                == .passage(.translateSource(Self.home, clientPort: 40_000)))
        #expect(flows[FlowKey(stage: .prerouting, tuple: seen)] == .holdSYN(.pass))
        #expect(session.elements()[.divertConnection(seen)] == .some(nil))
        var yielding = session
        yielding.yields = true
        #expect(yielding.flows()[FlowKey(stage: .prerouting, tuple: seen)] == nil)
        #expect(yielding.elements()[.divertConnection(seen)] == nil)
    }

    @Test func `in the kernel datapath a port is an element where it is stated, and the kernel's choice elsewhere`() {
        let stated = Self.session(.kernel, sourcePort: 1023)
        let source = TableElement.source(stated.key.original, as: Self.endpoint("192.0.2.9:1023"))
        #expect(stated.elements()[source] == .some(nil))
        #expect(stated.hostSide?.source.port == 1023)
        #expect(stated.tracked == stated.key.original)
        #expect(stated.watched == nil)
        let free = Self.session(.kernel, sourcePort: nil)
        #expect(free.hostSide == nil)
        #expect(!free.elements().keys.contains { if case .source = $0 { true } else { false } })
    }

    @Test func `a session that follows its client leaves the port that was for the old one`() {
        let session = Self.session(.queue, sourcePort: 50_000)
        let next = session.following(to: 40_001, sourcePort: 50_001, tail: 60)
        #expect(next.binding?.sourcePort == 50_001)
        #expect(next.transits[session.key.original]?.sourcePort == 50_000)
        let flows = next.flows()
        // The end of the old connection goes on as it was.
        #expect(
            flows[FlowKey(stage: .prerouting, tuple: session.key.original)]
                == .holdSYN(.translateDestination(Self.host, clientPort: 50_000)))
        let reply = FourTuple(source: Self.host, destination: Self.endpoint("192.0.2.9:50000"))
        #expect(
            flows[FlowKey(stage: .postrouting, tuple: reply)]
                == .passage(.translateSource(Self.home, clientPort: 40_000)))
        #expect(session.following(to: 40_001, tail: 60).binding?.sourcePort == nil)
    }

    @Test func `a client's own connection is no session that follows`() {
        let key = SessionKey(client: Self.client.address, clientPort: Self.client.port, home: Self.host)
        let direct = Session(
            key: key, id: 2, binding: Binding(host: Self.host, datapath: .queue, sourcePort: 50_000))
        #expect(direct.isDirect)
        #expect(!direct.isFollowing)
        #expect(direct.watched == nil)
        #expect(!direct.elements().keys.contains { if case .credit = $0 { true } else { false } })
        #expect(direct.flows()[FlowKey(stage: .prerouting, tuple: key.original).anyPort] == nil)
    }

    @Test func `when a client's own connection takes the four-tuple over, one change moves it`() {
        let session = Self.session(.queue, sourcePort: nil)
        var yielding = session
        yielding.yields = true
        let key = SessionKey(client: Self.client.address, clientPort: Self.client.port, home: Self.host)
        let none = Session(key: key, id: 2)
        var direct = none
        direct.binding = Binding(host: Self.host, datapath: .queue, sourcePort: 50_000)
        let element = TableElement.divertConnection(key.original)
        let flow = FlowKey(stage: .prerouting, tuple: key.original)
        for steps in [[(session, yielding), (none, direct)], [(direct, none), (yielding, session)]] {
            let change = SessionChange(steps.map { (from: $0.0, to: $0.1) })
            #expect(change.removedElements.filter { $0 == element }.count == 1)
            #expect(change.addedElements.filter { $0.element == element }.count == 1)
            #expect(change.setFlows.filter { $0.key == flow }.count == 1)
            #expect(!change.removedFlows.contains(flow))
        }
    }
}
