// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
package import Migration
package import Wire

/// What a drain's order means: which sessions, to which hosts, how.
package struct DrainSelection {
    /// Which sessions have their turn first.
    enum Order: String {
        case oldest, newest, busiest
    }

    /// The from-host, present host or unmoved home; nil, with a service, for any that is not a to-host.
    var from: WeightedHost.HostName?
    /// The service's name, when only its sessions are meant.
    var service: String?
    var explicit: [SessionKey]?
    var client: AddressPrefix?
    var atMost: Int
    var order: Order?
    var scope: Scope
    var datapath: Datapath
    var passive: Bool
    var hosts: [WeightedHost]
    var plan: Drain.Plan

    /// Reads a controller's order.
    package init(_ order: DrainOrder, defaultDatapath: Datapath, checksHosts: Bool) throws(MalformedOrder) {
        from = try order.from.map { text throws(MalformedOrder) in try Self.host(text, "--from") }
        service = order.service
        guard from != nil || service != nil else {
            throw MalformedOrder("A drain needs to know what to move: name a from-host, a service, or both.")
        }
        hosts = []
        var family = from?.address.family
        for each in order.to {
            let weight = each.weight ?? 1
            guard (1...1_000_000).contains(weight) else {
                throw MalformedOrder("The weight of \(each.host) is \(weight): use 1 to 1000000.")
            }
            let host = each.host == "home" ? nil : try Self.host(each.host, "--to")
            if let host, let family, host.address.family != family {
                throw MalformedOrder(
                    "\(each.host) is not of the address family of \(order.from ?? order.to[0].host): name one of the same."
                )
            }
            family = family ?? host?.address.family
            if let host, let from, host.address == from.address, host.port == from.port || from.port == nil {
                throw MalformedOrder("\(each.host) is the host to be drained: name another to-host.")
            }
            guard !hosts.contains(where: { $0.host == host }) else {
                throw MalformedOrder("\(each.host) is named twice: name each to-host once, with its weight.")
            }
            hosts.append(WeightedHost(host: host, weight: weight))
        }
        guard !hosts.isEmpty else { throw MalformedOrder("A drain needs a to-host: name one or more, or home.") }
        guard hosts.count == 1 || !hosts.contains(where: { $0.host == nil }) else {
            throw MalformedOrder("home cannot be one to-host among several: drain home, or to hosts.")
        }
        guard hosts.count <= 1000 else { throw MalformedOrder("A drain has 1000 to-hosts at most.") }
        scope = try Self.named(order.scope, "a scope: use connection or client") ?? .connection
        datapath = try Self.named(order.datapath, "a datapath: use kernel or queue") ?? defaultDatapath
        self.order = try Self.named(order.order, "an order: use oldest, newest or busiest")
        passive = order.passive ?? false
        if let text = order.client {
            guard let prefix = AddressPrefix(text) else {
                throw MalformedOrder("\"\(text)\" is not an address prefix: write 192.0.2.0/24 or 2001:db8::/32.")
            }
            client = prefix
        }
        atMost = order.atMost ?? .max
        guard atMost > 0 else { throw MalformedOrder("At most \(atMost) sessions is none: use 1 or more.") }
        if let sessions = order.sessions {
            var keys: [SessionKey] = []
            for each in sessions { keys.append(try Self.key(each)) }
            explicit = keys
        }
        plan = try Self.plan(order, hosts, checksHosts)
    }

    private static func plan(
        _ order: DrainOrder, _ hosts: [WeightedHost], _ checksHosts: Bool
    ) throws(MalformedOrder) -> Drain.Plan {
        var plan = Drain.Plan(members: 0, hosts: hosts, checksHosts: checksHosts && hosts.first?.host != nil)
        if let rate = order.rate {
            guard rate >= 0.001, rate <= 1_000_000 else {
                throw MalformedOrder("A rate of \(rate) is out of range: use 0.001 to 1000000 migrations a second.")
            }
            plan.rate = rate
        }
        if let inFlight = order.inFlight {
            guard (1...100_000).contains(inFlight) else {
                throw MalformedOrder("\(inFlight) migrations in flight is out of range: use 1 to 100000.")
            }
            plan.inFlight = inFlight
        }
        if let canary = order.canary {
            guard canary > 0, canary <= 1 else {
                throw MalformedOrder("A canary of \(canary) is out of range: use a share above 0, up to 1 (100%).")
            }
            plan.canary = canary
        }
        if let settle = order.settle {
            guard settle >= 0, settle <= 86_400 else {
                throw MalformedOrder("A settle time of \(settle) is out of range: use 0 to 86400 seconds.")
            }
            plan.settle = UInt64(settle * 1e9)
        }
        return plan
    }

    private static func key(_ session: DrainSession) throws(MalformedOrder) -> SessionKey {
        let order = MigrationOrder(client: session.client, from: session.home, to: "home")
        return try MigrationRequest(order, defaultDatapath: .kernel, checksHost: false).session
    }

    private static func host(_ text: String, _ option: String) throws(MalformedOrder) -> WeightedHost.HostName {
        if let endpoint = Endpoint(text), endpoint.port != 0, endpoint.address.isUnicast {
            return WeightedHost.HostName(address: endpoint.address, port: endpoint.port)
        }
        guard let address = IPAddress(text), address.isUnicast else {
            throw MalformedOrder("\"\(text)\" is not a host: write 192.0.2.2, 192.0.2.2:80 or [2001:db8::2]:80.")
        }
        return WeightedHost.HostName(address: address)
    }

    private static func named<Name: RawRepresentable<String>>(
        _ text: String?, _ wanted: String
    ) throws(MalformedOrder) -> Name? {
        guard let text else { return nil }
        guard let name = Name(rawValue: text) else { throw MalformedOrder("\"\(text)\" is not \(wanted).") }
        return name
    }

    /// Whether sessions that this endpoint serves are to move, as far as the from-host says.
    func isFrom(_ endpoint: Endpoint) -> Bool {
        guard let from else { return true }
        return endpoint.address == from.address && (from.port == nil || endpoint.port == from.port)
    }

    /// Whether a session has a way to go from here: it is not on a to-host already, which is of its address family.
    func isElsewhere(_ host: Endpoint, home: Endpoint) -> Bool {
        guard from == nil else { return true }
        return hosts.allSatisfy { each in
            guard let to = each.host?.endpoint(for: home) else { return host != home }
            return to != host && to.address.family == home.address.family
        }
    }
}
