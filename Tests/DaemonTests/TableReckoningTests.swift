// SPDX-License-Identifier: GPL-3.0-or-later

import Daemon
import Migration
import Ruleset
import Testing
import Wire

@Suite struct TableReckoningTests {
    private static func element(_ number: UInt32) -> TableElement {
        .involved(.v4(IPv4Address(rawValue: number)))
    }

    @Test func `what is wanted and what is there are told apart, in whatever order they become known`() {
        var reckoning = TableReckoning()
        reckoning.want(Self.element(1), lifetime: 5)
        reckoning.want(Self.element(1), lifetime: 9)
        reckoning.want(Self.element(2), lifetime: nil)
        reckoning.want(Self.element(3), lifetime: nil)
        let expected = [2, 4, 5].map { reckoning.find(Self.element($0)) }
        #expect(expected == [true, false, false])
        #expect(reckoning.surplus == [Self.element(4), Self.element(5)])
        #expect(Set(reckoning.missing.map(\.element)) == [Self.element(1), Self.element(3)])
        #expect(reckoning.missing.first { $0.element == Self.element(1) }?.lifetime == 5)
        #expect((1...5).map { reckoning.isPresent(Self.element($0)) } == [false, true, false, true, true])

        // What a session wants after all, and what none wants any more.
        reckoning.want(Self.element(4), lifetime: nil)
        reckoning.refuse(Self.element(2))
        reckoning.refuse(Self.element(3))
        #expect(reckoning.surplus == [Self.element(2), Self.element(5)])
        #expect(reckoning.missing.map(\.element) == [Self.element(1)])
        #expect((1...5).map { reckoning.isPresent(Self.element($0)) } == [false, true, false, true, true])
        #expect(reckoning.present { $0 != Self.element(5) } == [Self.element(2), Self.element(4)])
    }

    /// Sessions of clients that come one after the other or mixed, some of another home, datapath or scope.
    private func sessions(_ random: inout SystemRandomNumberGenerator) -> [Session] {
        (0..<200).map { index in
            func endpoint(_ kind: UInt32, _ many: UInt32) -> Endpoint {
                let number = kind << 16 | UInt32.random(in: 0..<many, using: &random)
                return Endpoint(address: .v4(IPv4Address(rawValue: number)), port: UInt16(1 + index))
            }
            let client = endpoint(1, 4)
            let scope = Int.random(in: 0..<12, using: &random)
            let key = SessionKey(
                client: scope == 0 ? nil : client.address, clientPort: scope < 2 ? nil : client.port,
                home: endpoint(2, 2))
            var session = Session(
                key: key, id: UInt64(index),
                binding: Binding(
                    host: endpoint(3, 2), datapath: Int.random(in: 0..<3, using: &random) == 0 ? .kernel : .queue))
            if scope == 0 {
                for _ in 0..<3 {
                    session.replies.insert(FourTuple(source: session.host, destination: endpoint(1, 2)))
                }
            }
            return session
        }
    }

    @Test(arguments: 0..<50)
    func `shared elements come once, and count once for each session`(_: Int) {
        var random = SystemRandomNumberGenerator()
        let sessions = sessions(&random)
        var counted = SharedElements()
        var seen: [TableElement: Int] = [:]
        for session in sessions { counted.forEachElement(of: session) { element, _ in seen[element, default: 0] += 1 } }
        var expected: [TableElement: Int] = [:]
        for session in sessions { for element in session.elements().keys { expected[element, default: 0] += 1 } }
        #expect(Set(seen.keys) == Set(expected.keys))
        let counts = counted.result()
        for (element, count) in counts {
            #expect(count == expected[element])
            #expect(seen[element] == 1)
        }
        #expect(Set(counts.keys) == Set(expected.keys.filter(\.isShared)))
    }
}
