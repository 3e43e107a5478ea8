// SPDX-License-Identifier: GPL-3.0-or-later

import Daemon
import Migration
import Testing
import Wire

/// The table against dictionaries that hold every session as the value that it is.
@Suite struct SessionTableModelTests {
    private var random: SystemRandomNumberGenerator = .init()
    private var table = SessionTable()
    private var sessions: [SessionKey: Session] = [:]
    private var hostSides: [FourTuple: SessionKey] = [:]
    private var replies: [FourTuple: SessionKey] = [:]
    private var numbers: [UInt64: SessionKey] = [:]

    private mutating func endpoint(_ isWide: Bool, _ addresses: UInt32, _ ports: UInt16) -> Endpoint {
        let number = UInt32.random(in: 1...addresses, using: &random)
        let address: IPAddress =
            isWide ? .v6(IPv6Address(high: 0x2001_0db8 << 32, low: UInt64(number))) : .v4(IPv4Address(rawValue: number))
        return Endpoint(address: address, port: UInt16.random(in: 1...ports, using: &random))
    }

    private mutating func session() -> Session {
        let isWide = Int.random(in: 0..<4, using: &random) == 0
        let client = endpoint(isWide, 3, 4)
        let scope = Int.random(in: 0..<8, using: &random)
        let key = SessionKey(
            client: scope == 0 ? nil : client.address, clientPort: scope == 1 ? nil : client.port,
            home: endpoint(isWide, 2, 2))
        // A number of its own, by the key, as a session has one as long as it lives.
        var session = Session(key: key, id: numbers.first { $0.value == key }?.key ?? UInt64(numbers.count + 1))
        if Bool.random(using: &random) {
            session.binding = Binding(
                host: endpoint(isWide, 2, 2), datapath: Bool.random(using: &random) ? .queue : .kernel,
                sourcePort: key.scope == .connection && Bool.random(using: &random) ? client.port ^ 1 : nil)
            session.yields = Bool.random(using: &random)
        }
        if let tuple = session.hostSide, Bool.random(using: &random) { session.replies.insert(tuple.reversed) }
        if Int.random(in: 0..<3, using: &random) == 0 {
            session.replies.insert(FourTuple(source: endpoint(isWide, 2, 2), destination: client))
        }
        if Int.random(in: 0..<3, using: &random) == 0 {
            session.transits[key.original] = StandingTransit(
                transit: .awaitingSYN, host: key.home, lifetime: 9, migration: session.id)
        }
        return session
    }

    /// What the table did when it was made of dictionaries.
    private mutating func expect(_ new: Session?, for key: SessionKey) {
        let old = sessions[key]
        if let old {
            for reply in old.replies where new?.replies.contains(reply) != true && replies[reply] == key {
                replies[reply] = nil
            }
            if let tuple = old.hostSide, new?.hostSide != tuple, hostSides[tuple] == key { hostSides[tuple] = nil }
        }
        sessions[key] = new
        guard let new, new != old else { return }
        for reply in new.replies where old?.replies.contains(reply) != true { replies[reply] = key }
        if let tuple = new.hostSide { hostSides[tuple] = key }
        numbers[new.id] = key
    }

    private func compare() {
        #expect(table.count == sessions.count)
        #expect(Dictionary(uniqueKeysWithValues: table.map { ($0.key, $0.value) }) == sessions)
        for (id, key) in numbers { #expect(table.key(of: id) == (sessions[key]?.id == id ? key : nil)) }
        let tuples = sessions.values.flatMap { session in
            [session.hostSide, session.hostSide?.reversed].compactMap { $0 } + Array(session.replies)
        }
        for tuple in Set(tuples).union(hostSides.keys).union(replies.keys) {
            #expect(table.session(hostSide: tuple)?.key == hostSides[tuple])
            #expect(table.session(answeredBy: tuple)?.key == replies[tuple])
        }
        for (key, session) in sessions {
            #expect(table[key] == session)
            let all = sessions.values.filter { $0.key.client == nil || $0.key.client == key.client }
            #expect(Set(table.sessions(of: key.client)) == Set(key.client == nil ? Array(sessions.values) : all))
            let around = sessions.values.filter { other in
                guard other.key != key else { return false }
                guard let client = key.client, key.clientPort != nil else {
                    return key.client == nil || other.key.client == nil || other.key.client == key.client
                }
                return other.key.client == nil
                    || other.key.client == client && (other.key.clientPort ?? key.clientPort) == key.clientPort
            }
            let found = table.sessions(around: key)
            #expect(Set(found) == Set(around) && found.count == around.count)
            for tuple in session.transits.keys { #expect(table.session(holding: tuple)?.key == key) }
        }
    }

    @Test(arguments: 0..<60)
    func `the table is dictionaries`(_ run: Int) {
        var model = self
        if run % 3 == 0 {
            // Made of many at once.
            var first: [SessionKey: Session] = [:]
            for _ in 0..<20 {
                let session = model.session()
                if first.updateValue(session, forKey: session.key) == nil { model.expect(session, for: session.key) }
            }
            model.table = SessionTable(Array(model.sessions.values))
            model.hostSides = [:]
            model.replies = [:]
            for session in model.table.values {
                if let tuple = session.hostSide { model.hostSides[tuple] = model.table.session(hostSide: tuple)?.key }
                for reply in session.replies { model.replies[reply] = model.table.session(answeredBy: reply)?.key }
            }
        }
        for _ in 0..<200 {
            let session = model.session()
            switch Int.random(in: 0..<8, using: &model.random) {
            case 0, 1, 2, 3:
                model.table[session.key] = session
                model.expect(session, for: session.key)
            case 4, 5:
                model.table[session.key] = nil
                model.expect(nil, for: session.key)
            default:
                let reply = session.hostSide?.reversed ?? session.key.original.reversed
                model.table.learn(reply, of: session.key)
                if model.sessions[session.key]?.replies.insert(reply).inserted == true {
                    model.replies[reply] = session.key
                }
            }
        }
        model.compare()
        for key in Array(model.sessions.keys) {
            model.table[key] = nil
            model.expect(nil, for: key)
        }
        model.compare()
    }
}
