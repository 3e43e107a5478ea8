// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
package import Migration
internal import Wire

extension WeightedHost.HostName {
    /// How many ports a to-host may offer: each is asked for a connection.
    private static let mostPorts = 256

    /// Reads `192.0.2.2`, `192.0.2.2:80`, `192.0.2.2:80-89` and the same of IPv6; nil for anything else.
    package init?(_ text: String) throws(MalformedOrder) {
        if let address = IPAddress(text) {
            self.init(address: address)
            return
        }
        guard let range = EndpointRange(text), let ports = range.ports,
            range.prefix.length == (range.prefix.address.family == .ipv4 ? 32 : 128), !text.contains("/")
        else { return nil }
        guard ports.count <= Self.mostPorts else {
            throw MalformedOrder("\(text) has \(ports.count) ports: offer \(Self.mostPorts) at most.")
        }
        self.init(address: range.prefix.address, ports: ports)
    }
}

extension MigrationRequest {
    /// The endpoints that an order names as its to-host; none for home, and never home itself.
    static func hosts(_ order: MigrationOrder, home: Endpoint) throws(MalformedOrder) -> [Endpoint] {
        guard let text = order.to, text != "home" else { return [] }
        guard let host = try WeightedHost.HostName(text) else {
            throw MalformedOrder(
                "\"\(text)\" is not a host: write 192.0.2.2, 192.0.2.2:80, 192.0.2.2:80-89 or [2001:db8::2]:80 for --to."
            )
        }
        return host.endpoints(for: home).filter { $0 != home }
    }

    /// Takes over a translation that the controller has stated, for the connection of `key`.
    mutating func state(_ translation: StatedTranslation) throws(MalformedOrder) {
        guard session.scope == .connection, let port = session.clientPort else {
            throw MalformedOrder("A stated translation is for one connection: name the client's port, or leave it out.")
        }
        guard let source = Endpoint(translation.source), source.port != 0,
            let destination = Endpoint(translation.destination), destination.port != 0
        else {
            throw MalformedOrder(
                "\"\(translation.source)\" to \"\(translation.destination)\" is not a translation: write two endpoints such as "
                    + "192.0.2.9:1023 and 192.0.2.2:80.")
        }
        guard source.address == session.client else {
            throw MalformedOrder(
                "\(source) is not an endpoint of the client \(Endpoint(address: session.clientEndpoint.address, port: port)): a "
                    + "translation keeps the client's address, so that the host's replies come back through this gateway."
            )
        }
        guard destination != session.home else {
            throw MalformedOrder("\(destination) is the home: use return for the way home.")
        }
        to = destination
        candidates = []
        sourcePort = source.port
    }
}
