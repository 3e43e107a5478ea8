// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Daemon
import Migration
import Testing
import Wire

@Suite struct MigrationOrderTests {
    private func read(_ order: MigrationOrder) throws -> MigrationRequest {
        try MigrationRequest(order, defaultDatapath: .kernel, checksHost: true)
    }

    @Test func `the client's port decides the scope`() throws {
        let one = try read(MigrationOrder(client: "192.0.2.9:40000", from: "198.51.100.1:80", to: "198.51.100.2"))
        #expect(one.session.scope == .connection)
        #expect(one.to == Endpoint("198.51.100.2:80"))
        let all = try read(MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2:8080"))
        #expect(all.session.scope == .client)
        #expect(all.to == Endpoint("198.51.100.2:8080"))
        let wide = try read(
            MigrationOrder(
                client: "[2001:db8::9]:40000", from: "[2001:db8:1::1]:80", to: "2001:db8:1::2", scope: "client",
                datapath: "queue", passive: true))
        #expect(wide.session.clientPort == nil)
        #expect(wide.datapath == .queue)
        #expect(wide.passive)
    }

    @Test func `a service has every client`() throws {
        let home = "198.51.100.1:80"
        for order in [
            MigrationOrder(client: nil, from: home, to: "198.51.100.2", scope: "service"),
            MigrationOrder(client: "any", from: home, to: "198.51.100.2", scope: "service"),
            MigrationOrder(client: "any", from: home, to: "198.51.100.2"),
        ] {
            let key = try read(order).session
            #expect(key.scope == .service)
            #expect(key.client == nil)
            #expect("\(key)" == "the connections of all clients to 198.51.100.1:80")
        }
    }

    @Test func `a lifetime is read with where it leads`() throws {
        var order = MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2")
        #expect(try RequestedLifetime(order, of: try read(order)) == nil)
        (order.lifetime, order.then, order.confirmWithin) = (600, "198.51.100.3", 30)
        let lifetime = try RequestedLifetime(order, of: try read(order))
        #expect(
            lifetime == RequestedLifetime(seconds: 600, then: Endpoint("198.51.100.3:80"), confirmWithin: 30))
        order.then = "home"
        #expect(try RequestedLifetime(order, of: try read(order))?.then == nil)
    }

    @Test(
        arguments: [
            (nil, "198.51.100.3", nil), (0, nil, nil), (-1, nil, nil), (1e12, nil, nil), (.nan, nil, nil),
            (nil, nil, 0),
            (nil, nil, .infinity), (60, "198.51.100.2", nil), (60, "2001:db8::1", nil), (60, "nonsense", nil),
        ] as [(Double?, String?, Double?)])
    func `a lifetime that cannot be meant is refused in one sentence`(
        lifetime: Double?, then: String?, confirmWithin: Double?
    ) {
        var order = MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2")
        (order.lifetime, order.then, order.confirmWithin) = (lifetime, then, confirmWithin)
        #expect { try RequestedLifetime(order, of: try read(order)) } throws: { error in
            (error as? MalformedOrder)?.problem.detail.hasSuffix(".") ?? false
        }
    }

    @Test func `the way home has no lifetime`() {
        var order = MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "home")
        order.confirmWithin = 30
        #expect(throws: MalformedOrder.self) { try RequestedLifetime(order, of: try read(order)) }
    }

    @Test func `a range of ports is as many candidates, home not among them`() throws {
        let range = try read(MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2:80-82"))
        #expect(range.candidates.map(\.port) == [80, 81, 82])
        #expect(range.to == range.candidates.first)
        let own = try read(MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:81", to: "198.51.100.1:80-82"))
        #expect(own.candidates.map(\.port) == [80, 82])
        let six = try read(MigrationOrder(client: "2001:db8::9", from: "[2001:db8::1]:80", to: "[2001:db8::2]:1-256"))
        #expect(six.candidates.count == 256)
        for text in [
            "198.51.100.2:1-257", "198.51.100.2:9-8", "198.51.100.0/24:80-81", "198.51.100.2:0-9", "198.51.100.2:-9",
        ] {
            #expect(throws: MalformedOrder.self) {
                try read(MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: text))
            }
        }
    }

    @Test func `a stated translation is taken as it is, and for one connection only`() throws {
        var order = MigrationOrder(client: "192.0.2.9:40000", from: "198.51.100.1:80", to: nil)
        order.translation = StatedTranslation(source: "192.0.2.9:1023", destination: "198.51.100.2:8080")
        let request = try read(order)
        #expect(request.to == Endpoint("198.51.100.2:8080") && request.sourcePort == 1023 && request.candidates.isEmpty)
        for (client, to, source, destination) in [
            ("192.0.2.9", nil, "192.0.2.9:1023", "198.51.100.2:80"),
            ("192.0.2.9:40000", "198.51.100.2", "192.0.2.9:1023", "198.51.100.2:80"),
            ("192.0.2.9:40000", nil, "192.0.2.8:1023", "198.51.100.2:80"),
            ("192.0.2.9:40000", nil, "192.0.2.9", "198.51.100.2:80"),
            ("192.0.2.9:40000", nil, "192.0.2.9:0", "198.51.100.2:80"),
            ("192.0.2.9:40000", nil, "192.0.2.9:1023", "198.51.100.2"),
            ("192.0.2.9:40000", nil, "192.0.2.9:1023", "198.51.100.1:80"),
            ("192.0.2.9:40000", nil, "192.0.2.9:1023", "[2001:db8::2]:80"),
            ("192.0.2.9:40000", nil, "192.0.2.9:1023", "224.0.0.1:80"),
        ] as [(String, String?, String, String)] {
            var order = MigrationOrder(client: client, from: "198.51.100.1:80", to: to)
            order.translation = StatedTranslation(source: source, destination: destination)
            #expect(throws: MalformedOrder.self, "\(client) \(source) \(destination)") { try read(order) }
        }
    }

    @Test func `home is home by any name`() throws {
        for to in [nil, "home", "198.51.100.1", "198.51.100.1:80"] as [String?] {
            #expect(try read(MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: to)).to == nil)
        }
    }

    @Test(arguments: [
        MigrationOrder(to: "198.51.100.2"), MigrationOrder(client: "192.0.2.9", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2", from: "198.51.100.1:80", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2.9:0", from: "198.51.100.1:80", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2.9:65536", from: "198.51.100.1:80", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:0", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "host-b"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "2001:db8::1"),
        MigrationOrder(client: "2001:db8::9", from: "198.51.100.1:80", to: "198.51.100.2"),
        MigrationOrder(client: "2001:db8::9:80", from: "2001:db8::1:80", to: "2001:db8::2"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "127.0.0.1"),
        MigrationOrder(client: "224.0.0.1", from: "198.51.100.1:80", to: "198.51.100.2"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2", scope: "connection"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2", scope: "world"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2", scope: "service"),
        MigrationOrder(client: "any", from: "198.51.100.1:80", to: "198.51.100.2", scope: "client"),
        MigrationOrder(client: "any", from: "198.51.100.1:80", to: "198.51.100.2", scope: "connection"),
        MigrationOrder(client: nil, from: "198.51.100.1:80", to: "198.51.100.2"),
        MigrationOrder(client: nil, from: "198.51.100.1:80", to: "2001:db8::2", scope: "service"),
        MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: "198.51.100.2", datapath: "tape"),
    ])
    func `what cannot be meant is refused in one sentence`(order: MigrationOrder) {
        #expect { try read(order) } throws: { error in
            guard let problem = (error as? MalformedOrder)?.problem else { return false }
            return problem.exitCode == ControlInterface.ExitCode.usage.rawValue && problem.detail.hasSuffix(".")
                && problem.status == 400
        }
    }
}
