// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// What may be moved where, for whom, how often and by whom. What no service names is not moved.
public struct Policy: Hashable, Sendable {
    /// The services in the configuration's order: the first that names a session's home and client is the one that counts.
    public var services: [Service]

    public init(services: [Service] = []) { self.services = services }

    /// Who asks, as the kernel tells it: the effective user and group of the process.
    public struct Credentials: Hashable, Sendable {
        public var user: UInt32
        public var group: UInt32

        public init(user: UInt32, group: UInt32) {
            self.user = user
            self.group = group
        }
    }

    public func service(named name: String) -> Service? { services.first { $0.name == name } }

    /// The service that a session belongs to.
    public func service(of session: SessionKey) -> Service? {
        services.first { $0.names(session.home) && $0.serves(session) }
    }

    /// Decides on a migration: whether it may be, and whether it may be now. An admitted one counts against the service's
    /// rate from then on. `now` is in nanoseconds of a monotonic clock. Without `credentials` the daemon itself asks.
    public func admit(
        _ session: SessionKey, to host: Endpoint?, by credentials: Credentials?, paces: inout [String: Pace],
        at now: UInt64
    ) -> Admission {
        if let refusal = refusal(of: session, to: host, by: credentials) { return .refused(refusal) }
        // The way home must be open also when much is moving.
        guard let host, let service = service(of: session), let rate = service.rate else { return .admitted }
        guard paces[service.name, default: Pace()].take(rate: rate, at: now) else {
            return .refused(.rate(service: service.name, rate: rate, host: host))
        }
        return .admitted
    }

    /// When the rate of the session's service has a place for a migration, in nanoseconds: for who can wait instead of being
    /// refused. nil when it has one now. Nothing is counted.
    public func place(for session: SessionKey, to host: Endpoint?, in paces: [String: Pace], at now: UInt64) -> UInt64?
    {
        guard host != nil, let service = service(of: session), let rate = service.rate else { return nil }
        return paces[service.name]?.place(rate: rate, at: now)
    }

    /// Why a migration may not be, whenever it is; nil when it may.
    public func refusal(of session: SessionKey, to host: Endpoint?, by credentials: Credentials?) -> PolicyRefusal? {
        guard let service = service(of: session) else {
            // A service that the configuration no longer names must not keep its sessions away from home.
            if host == nil, credentials == nil || credentials?.user == 0 { return nil }
            if let near = services.first(where: { $0.names(session.home) }) {
                return .client(service: near.name, client: session.client)
            }
            return .home(session.home)
        }
        if let credentials {
            if service.readers.contains(credentials) { return .reader(service: service.name, user: credentials.user) }
            if let callers = service.callers, !callers.contains(credentials) {
                return .caller(service: service.name, user: credentials.user)
            }
        }
        guard let host else { return nil }
        guard service.hosts.contains(where: { $0.contains(host) }) else {
            return .host(service: service.name, host: host)
        }
        return nil
    }
}

/// What the policy says to a request.
public enum Admission: Hashable, Sendable {
    case admitted
    case refused(PolicyRefusal)
}

/// The rule that a request met.
public enum PolicyRefusal: Hashable, Sendable {
    /// No service names this home.
    case home(Endpoint)
    /// The home's service is not for this client; nil: not for everybody.
    case client(service: String, client: IPAddress?)
    case host(service: String, host: Endpoint)
    case caller(service: String, user: UInt32)
    /// One of those who may look and not touch.
    case reader(service: String, user: UInt32)
    case rate(service: String, rate: Double, host: Endpoint)
}

extension PolicyRefusal: CustomStringConvertible {
    public var description: String {
        switch self {
        case .home(let home):
            "No service names \(home) as a home: add it to the homes of a [[service]] in the configuration."
        case .client(let service, let client?):
            "Service \"\(service)\": \(client) is not among its clients."
        case .client(let service, nil):
            "Service \"\(service)\": not every address is among its clients."
        case .host(let service, let host):
            "Service \"\(service)\": \(host) is not among its hosts."
        case .caller(let service, let user):
            "Service \"\(service)\": user \(user) is not among its callers."
        case .reader(let service, let user):
            "Service \"\(service)\": user \(user) is among its readers, who may move nothing."
        case .rate(let service, let rate, _):
            "Service \"\(service)\": its rate of \(Self.text(rate)) migrations per second is used up; ask again later."
        }
    }

    /// A number without a fraction that says nothing.
    private static func text(_ number: Double) -> String {
        number == number.rounded() && number < 1e9 ? "\(Int(number))" : "\(number)"
    }
}

/// One thing that is served: its homes, and what the operator allows for them.
public struct Service: Hashable, Sendable {
    public var name: String
    /// The endpoints that clients believe they talk to.
    public var homes: [EndpointRange]
    /// Where sessions may be moved. Home is always allowed.
    public var hosts: [EndpointRange]
    /// Whose sessions may be moved.
    public var clients: [AddressPrefix]
    /// Migrations per second; nil for as many as are asked for.
    public var rate: Double?
    /// Who may ask; nil for everybody who can reach the control socket.
    public var callers: CallerSet?
    /// Who may look only.
    public var readers: CallerSet

    /// Every address of both families.
    public static let everybody = [
        AddressPrefix(.v4(IPv4Address(rawValue: 0)), length: 0),
        AddressPrefix(.v6(IPv6Address(high: 0, low: 0)), length: 0),
    ].compactMap { $0 }

    public init(
        name: String, homes: [EndpointRange], hosts: [EndpointRange], clients: [AddressPrefix] = Service.everybody,
        rate: Double? = nil, callers: CallerSet? = nil, readers: CallerSet = CallerSet()
    ) {
        self.name = name
        self.homes = homes
        self.hosts = hosts
        self.clients = clients
        self.rate = rate
        self.callers = callers
        self.readers = readers
    }

    public func names(_ home: Endpoint) -> Bool { homes.contains { $0.contains(home) } }

    public func serves(_ client: IPAddress) -> Bool { clients.contains { $0.contains(client) } }

    /// Whether all clients of a session are this service's.
    public func serves(_ session: SessionKey) -> Bool {
        if let client = session.client { return serves(client) }
        return clients.contains { $0.length == 0 && $0.contains(session.home.address) }
    }
}

/// Users and groups, by number.
public struct CallerSet: Hashable, Sendable {
    public var users: Set<UInt32>
    public var groups: Set<UInt32>

    public init(users: Set<UInt32> = [], groups: Set<UInt32> = []) {
        self.users = users
        self.groups = groups
    }

    public func contains(_ credentials: Policy.Credentials) -> Bool {
        users.contains(credentials.user) || groups.contains(credentials.group)
    }
}

/// Addresses with a range of ports.
public struct EndpointRange: Hashable, Sendable {
    public var prefix: AddressPrefix
    /// nil when they are left open.
    public var ports: ClosedRange<UInt16>?

    public init(prefix: AddressPrefix, ports: ClosedRange<UInt16>?) {
        self.prefix = prefix
        self.ports = ports
    }

    public func contains(_ endpoint: Endpoint) -> Bool {
        (ports?.contains(endpoint.port) ?? true) && prefix.contains(endpoint.address)
    }
}

extension EndpointRange: LosslessStringConvertible {
    /// `192.0.2.1`, `192.0.2.0/24`, `192.0.2.1:80`, `192.0.2.0/24:80-90`; IPv6 with a port in brackets: `[2001:db8::/64]:80`.
    public init?(_ description: String) {
        if let prefix = AddressPrefix(description) {
            self.init(prefix: prefix, ports: nil)
            return
        }
        guard let colon = description.lastIndex(of: ":") else { return nil }
        var text = description[..<colon]
        let bracketed = text.hasPrefix("[") && text.hasSuffix("]")
        if bracketed { text = text.dropFirst().dropLast() }
        let bounds = description[description.index(after: colon)...].split(
            separator: "-", omittingEmptySubsequences: false)
        guard let prefix = AddressPrefix(String(text)), (prefix.address.family == .ipv6) == bracketed,
            (1...2).contains(bounds.count), let first = Self.port(bounds[0]),
            let last = Self.port(bounds[bounds.count - 1]),
            first <= last
        else { return nil }
        self.init(prefix: prefix, ports: first...last)
    }

    private static func port(_ text: Substring) -> UInt16? {
        guard text.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let port = UInt16(text), port > 0 else {
            return nil
        }
        return port
    }

    public var description: String {
        guard let ports else { return "\(prefix)" }
        let text = ports.count == 1 ? "\(ports.lowerBound)" : "\(ports.lowerBound)-\(ports.upperBound)"
        return prefix.address.family == .ipv6 ? "[\(prefix)]:\(text)" : "\(prefix):\(text)"
    }
}

/// When a service's latest migrations were admitted.
public struct Pace: Hashable, Sendable {
    /// Nanoseconds, oldest first; never more than one window's worth.
    private var admitted: [UInt64] = []

    public init() {}

    /// Takes a place if there is one: no second has more than `rate` of them; below one a second, each has its own
    /// 1 / `rate` seconds.
    public mutating func take(rate: Double, at now: UInt64) -> Bool {
        let (places, window) = Self.window(rate)
        admitted.removeAll { $0 + window <= now }
        guard admitted.count < places else { return false }
        admitted.append(now)
        return true
    }

    /// When there is a place, if there is none now.
    public func place(rate: Double, at now: UInt64) -> UInt64? {
        let (places, window) = Self.window(rate)
        guard admitted.count >= places else { return nil }
        let free = admitted[admitted.count - places] + window
        return free > now ? free : nil
    }

    /// So many places in so many nanoseconds.
    private static func window(_ rate: Double) -> (places: Int, nanoseconds: UInt64) {
        let places = max(1, rate.rounded(.down))
        return (Int(places), UInt64(places / rate * 1e9))
    }
}
