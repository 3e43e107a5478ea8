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
