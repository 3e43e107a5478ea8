// SPDX-License-Identifier: GPL-3.0-or-later

import Rewriter
import Testing
import Wire

@Suite struct FlowTableTests {
    private func key(using random: inout SplitMix64, ports: UInt16) -> FlowKey {
        // Few addresses and ports, so that keys come up again, differ in one field only, and stand beside each other.
        func endpoint() -> Endpoint {
            let number = random.next() % 3
            let address: IPAddress =
                Bool.random(using: &random)
                ? .v4(IPv4Address(rawValue: UInt32(number))) : .v6(IPv6Address(high: number & 1, low: number >> 1))
            return Endpoint(address: address, port: UInt16.random(in: 0...ports, using: &random))
        }
        let tuple = FourTuple(source: endpoint(), destination: endpoint())
        return FlowKey(stage: Bool.random(using: &random) ? .prerouting : .postrouting, tuple: tuple)
    }

    private func rule(using random: inout SplitMix64) -> FlowRule {
        let endpoint = RandomPacket.endpoint(Bool.random(using: &random) ? .ipv4 : .ipv6, using: &random)
        let passages: [Passage] = [.pass, .translateDestination(endpoint), .translateSource(endpoint)]
        let passage = passages[Int(random.next() % 3)]
        return [.freeze, .awaitSYN(passage), .reconnected(passage), .passage(passage)][Int(random.next() % 4)]
    }

    @Test(arguments: 0..<400)
    func `the table is a dictionary`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        var table = FlowTable(capacity: seed % 5, seed: random.next())
        var dictionary: [FlowKey: FlowRule] = [:]
        let ports = UInt16([0, 1, 4, 40][seed % 4])
        for _ in 0..<600 {
            let key = key(using: &random, ports: ports)
            switch random.next() % 5 {
            case 0, 1:
                let rule = rule(using: &random)
                table.set(key, rule)
                dictionary[key] = rule
            case 2, 3:
                #expect(table.remove(key) == (dictionary.removeValue(forKey: key) != nil))
            default:
                #expect(table.lookup(key) == dictionary[key])
            }
            #expect(table.count == dictionary.count)
        }
        for (key, rule) in dictionary { #expect(table.lookup(key) == rule) }
        for key in dictionary.keys { table.remove(key) }
        #expect(table.count == 0)
        #expect(table.endpointCount == 0)
        for key in dictionary.keys { #expect(table.lookup(key) == nil) }
    }

    @Test func `flows of IPv6 share the endpoints that they have in common, as long as one has them`() throws {
        let home = try #require(Endpoint("[2001:db8::1]:443"))
        let host = try #require(Endpoint("[2001:db8::2]:8443"))
        func key(_ number: UInt64) -> FlowKey {
            let client = Endpoint(address: .v6(IPv6Address(high: 0x2001_0db8 << 32 | 1, low: number)), port: 40_000)
            return FlowKey(stage: .prerouting, tuple: FourTuple(source: client, destination: home))
        }
        var table = FlowTable(seed: 7)
        for number in 0..<100 as Range<UInt64> { table.set(key(number), .passage(.translateDestination(host))) }
        #expect(table.endpointCount == 2)
        // The segments of an old connection towards its client, which is registered for that long only.
        let transit = FlowKey(stage: .prerouting, tuple: key(5).tuple.reversed)
        table.set(transit, .awaitSYN(.pass))
        #expect(table.endpointCount == 3)
        for number in 0..<99 as Range<UInt64> { table.remove(key(number)) }
        #expect(table.endpointCount == 3)
        table.remove(transit)
        table.set(key(99), .passage(.translateDestination(home)))
        #expect(table.endpointCount == 1)
        #expect(table.lookup(key(99)) == .passage(.translateDestination(home)))
        table.remove(key(99))
        #expect(table.endpointCount == 0)
    }

    @Test(arguments: Stage.allCases, AddressFamily.allCases)
    func `the narrowest rule covers a flow, and every client's only while there is one`(
        _ stage: Stage, _ family: AddressFamily
    ) throws {
        func endpoint(_ number: Int, _ port: Int) throws -> Endpoint {
            try #require(Endpoint(family == .ipv4 ? "192.0.2.\(number):\(port)" : "[2001:db8::\(number)]:\(port)"))
        }
        let (client, other, peer) = try (endpoint(9, 40_000), endpoint(10, 40_000), endpoint(1, 80))
        func key(_ client: Endpoint) -> FlowKey {
            let tuple = FourTuple(source: client, destination: peer)
            return FlowKey(stage: stage, tuple: stage == .prerouting ? tuple : tuple.reversed)
        }
        var table = FlowTable(seed: 1)
        table.set(key(client).anyClient, .passage(.translateDestination(peer)))
        table.set(key(client).anyClient, .passage(.translateSource(peer)))
        table.set(key(client).anyPort, .passage(.pass))
        table.set(key(client), .freeze)
        #expect(table.coveringRule(key(client)) == .freeze)
        table.remove(key(client))
        #expect(table.coveringRule(key(client)) == .passage(.pass))
        table.remove(key(client).anyPort)
        #expect(table.coveringRule(key(client)) == .passage(.translateSource(peer)))
        #expect(table.coveringRule(key(other)) == .passage(.translateSource(peer)))
        let elsewhere = Endpoint(address: peer.address, port: 81)
        var miss = key(client)
        if stage == .prerouting { miss.tuple.destination = elsewhere } else { miss.tuple.source = elsewhere }
        #expect(table.coveringRule(miss) == nil)
        table.remove(key(client).anyClient)
        #expect(table.coveringRule(key(client)) == nil)
    }

    @Test func `a table that is filled and emptied for long finds and misses as before, and does not grow`() {
        var random = SplitMix64(seed: 1)
        var table = FlowTable(capacity: 64, seed: 2)
        let keys = (0..<4096).map { _ in
            FlowKey(stage: .prerouting, tuple: RandomPacket.tuple(.ipv4, using: &random))
        }
        let slots = table.slotCount
        for round in 0..<64 {
            for key in keys[(round * 64)..<(round * 64 + 64)] { table.set(key, .freeze) }
            for key in keys[(round * 64)..<(round * 64 + 64)] { #expect(table.lookup(key) == .freeze) }
            for key in keys[(round * 64)..<(round * 64 + 64)] { table.remove(key) }
        }
        #expect(table.count == 0)
        #expect(table.slotCount == slots)
        // Tombstones would make this look-up, which finds nothing, walk the whole table.
        for key in keys { #expect(table.probes(key) == 0) }
    }

    @Test(arguments: [0, 1, -1, 0x1234_5678])
    func `neighbouring keys are spread, whatever the seed`(_ seed: Int) {
        var table = FlowTable(capacity: 20_000, seed: UInt64(bitPattern: Int64(seed)))
        var keys: [FlowKey] = []
        for host in 0..<100 as Range<UInt32> {
            for port in 0..<200 as Range<UInt16> {
                let source = Endpoint(address: .v4(IPv4Address(rawValue: 0xC633_6400 + host)), port: 40_000 + port)
                let destination = Endpoint(address: .v4(IPv4Address(rawValue: 0xC000_0201)), port: 443)
                keys.append(
                    FlowKey(stage: .prerouting, tuple: FourTuple(source: source, destination: destination)))
            }
        }
        for key in keys { table.set(key, .freeze) }
        // Five slots in eight are taken: a random table needs about 0.8 further ones on the average, and a few dozen at worst.
        let probes = keys.map { table.probes($0) }
        #expect(Double(probes.reduce(0, +)) / Double(keys.count) < 1.0)
        #expect((probes.max() ?? 0) < 100)
    }
}
