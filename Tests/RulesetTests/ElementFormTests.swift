// SPDX-License-Identifier: GPL-3.0-or-later

import Ruleset
import Testing
import Wire

struct ElementFormTests {
    private func endpoint(_ text: String) throws -> Endpoint { try #require(Endpoint(text)) }

    private func everyKind(_ client: String, _ home: String, _ host: String) throws -> [TableElement] {
        let (client, home, host) = (try endpoint(client), try endpoint(home), try endpoint(host))
        let tuple = FourTuple(source: client, destination: home)
        return [
            .involved(client.address), .answering(host.address), .divert(tuple), .divertConnection(tuple),
            .guard(tuple),
            .credit(client: client.address, home: home),
            .divertClient(client: client.address, home: home),
            .divertService(home: home), .service(home: home, host: host),
            .connection(tuple, host: host), .source(tuple, as: client),
            .client(client.address, home: home, host: host), .guarded(tuple),
            .reply(tuple), .icmpHome(home.address), .icmpPeer(client.address),
            .endpointAddress(number: 7, host.address), .endpointPort(number: 7, host.port, host.address.family),
            .clientPort(number: 7, client.port, client.address.family),
        ]
    }

    @Test func `a form leads back to its element and has the length of its set's key`() throws {
        let ruleset = Ruleset(RulesetOptions(mark: 0x10_0000, firstQueue: 0, queueCount: 1))
        let elements =
            try everyKind("192.0.2.1:1", "198.51.100.2:65535", "203.0.113.3:443")
            + everyKind("[2001:db8::1]:1", "[2001:db8::2]:65535", "[2001:db8::3]:443")
        for element in elements {
            let form = try ElementForm(element)
            #expect(form.element == element)
            let definition = try #require(ruleset.sets.first { $0.name == form.set })
            #expect(form.key.count == definition.keyLength)
            switch (definition.value, form.value) {
            case (.none, .none): break
            case (.data(let types), .octets(let octets)):
                #expect(octets.count == (types.count == 1 ? types[0].length : types.reduce(0) { $0 + $1.paddedLength }))
            default: Issue.record("\(form) does not fit \(definition)")
            }
        }
    }

    @Test func `ports are in network order and padded to a register`() throws {
        let tuple = FourTuple(source: try endpoint("192.0.2.1:258"), destination: try endpoint("198.51.100.2:443"))
        let form = try ElementForm(.connection(tuple, host: try endpoint("203.0.113.3:8443")))
        #expect(form.set.description == "connection4")
        #expect(form.key == [192, 0, 2, 1, 1, 2, 0, 0, 198, 51, 100, 2, 1, 0xbb, 0, 0])
        #expect(form.value == .octets([203, 0, 113, 3, 0x20, 0xfb, 0, 0]))
    }

    @Test func `a mix of families is an error in every place`() throws {
        let (four, six) = (try endpoint("192.0.2.1:1"), try endpoint("[2001:db8::1]:1"))
        let pair = FourTuple(source: six, destination: six)
        let mixed: [TableElement] = [
            .divert(FourTuple(source: four, destination: six)),
            .guard(FourTuple(source: six, destination: four)),
            .divertClient(client: four.address, home: six), .credit(client: six.address, home: four),
            .connection(FourTuple(source: four, destination: six), host: four),
            .connection(pair, host: four), .source(pair, as: four),
            .client(six.address, home: six, host: four), .client(six.address, home: four, host: six),
            .service(home: four, host: six),
            .guarded(FourTuple(source: four, destination: six)), .reply(FourTuple(source: six, destination: four)),
        ]
        for element in mixed {
            #expect(throws: MixedFamilies(element: element)) { try ElementForm(element) }
        }
    }

    @Test func `what is none of ours has no element`() throws {
        let four = SetName(.divert, .ipv4)
        let tuple = FourTuple(source: try endpoint("192.0.2.1:1"), destination: try endpoint("198.51.100.2:2"))
        let key = try ElementForm(.divert(tuple)).key
        #expect(ElementForm(set: four, key: key, value: .none).element != nil)
        #expect(ElementForm(set: SetName(.connection, .ipv4), key: key, value: .none).element == nil)
        #expect(ElementForm(set: SetName(.endpointPort, .ipv4), key: [1, 0, 0, 0], value: .octets([1])).element == nil)
        #expect(ElementForm(set: SetName(.connection, .ipv4), key: key, value: .octets([1, 2, 3])).element == nil)
        #expect(ElementForm(set: SetName(.guarded, .ipv6), key: key, value: .none).element == nil)
        for length in 0..<key.count {
            #expect(ElementForm(set: four, key: Array(key.prefix(length)), value: .none).element == nil)
        }
        #expect(ElementForm(set: four, key: key + [0], value: .none).element == nil)
    }

    @Test func `set names are read as they are written`() {
        for purpose in SetName.Purpose.allCases {
            for family in AddressFamily.allCases {
                let name = SetName(purpose, family)
                #expect(SetName(name.description) == name)
            }
        }
        #expect(SetName("divert") == nil && SetName("divert5") == nil && SetName("") == nil)
    }
}
