// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// A table element in the form the kernel keeps it: set, key octets, value.
public struct ElementForm: Hashable, Sendable {
    /// What the key maps to.
    public enum Value: Hashable, Sendable {
        case none
        /// Octets of a concatenation.
        case octets([UInt8])
    }

    public let set: SetName
    /// Addresses and ports in network order, each port followed by two zero octets: a part of a concatenation fills
    /// whole 32-bit registers. A mark in the machine's order.
    public let key: [UInt8]
    public let value: Value

    /// A form as read from the kernel.
    public init(set: SetName, key: [UInt8], value: Value) {
        self.set = set
        self.key = key
        self.value = value
    }

    /// The form of an element.
    ///
    /// - Throws: `MixedFamilies` when its addresses are of both families.
    public init(_ element: TableElement) throws(MixedFamilies) {
        let parts: Parts
        var value = Value.none
        switch element {
        case .involved(let address): parts = Parts(address)
        case .divert(let tuple): parts = Parts(tuple)
        case .divertConnection(let tuple): parts = Parts(tuple)
        case .guard(let tuple): parts = Parts(tuple)
        case .credit(let client, let home): parts = Parts(client, home)
        case .divertClient(let client, let home): parts = Parts(client, home)
        case .divertService(let home): parts = Parts(home)
        case .connection(let tuple, let host):
            parts = Parts(tuple)
            value = .octets(try Parts(host).octets(of: tuple.source.address.family, in: element))
        case .client(let client, let home, let host):
            parts = Parts(client, home)
            value = .octets(try Parts(host).octets(of: client.family, in: element))
        case .service(let home, let host):
            parts = Parts(home)
            value = .octets(try Parts(host).octets(of: home.address.family, in: element))
        case .source(let tuple, let source):
            parts = Parts(tuple)
            value = .octets(try Parts(source).octets(of: tuple.source.address.family, in: element))
        case .guarded(let tuple): parts = Parts(tuple)
        case .reply(let tuple): parts = Parts(tuple)
        case .answering(let address): parts = Parts(address)
        case .icmpHome(let address): parts = Parts(address)
        case .icmpPeer(let address): parts = Parts(address)
        case .endpointAddress(let number, let address):
            parts = Parts(mark: number, address.family)
            value = .octets(address.octets)
        case .endpointPort(let number, let port, let family):
            parts = Parts(mark: number, family)
            value = .octets(Parts.octets(of: port))
        case .clientPort(let number, let port, let family):
            parts = Parts(mark: number, family)
            value = .octets(Parts.octets(of: port))
        }
        set = element.set
        key = try parts.octets(of: parts.family, in: element)
        self.value = value
    }

    /// The element of this form; nil when key or value is none of ours.
    public var element: TableElement? {
        var key = OctetReader(key, family: set.family)
        let element: TableElement?
        switch set.purpose {
        case .involved: element = key.address().map { .involved($0) }
        case .divert: element = key.fourTuple().map { .divert($0) }
        case .divertConnection: element = key.fourTuple().map { .divertConnection($0) }
        case .guard: element = key.fourTuple().map { .guard($0) }
        case .credit:
            guard let client = key.address(), let home = key.endpoint() else { return nil }
            element = .credit(client: client, home: home)
        case .divertClient:
            guard let client = key.address(), let home = key.endpoint() else { return nil }
            element = .divertClient(client: client, home: home)
        case .divertService: element = key.endpoint().map { .divertService(home: $0) }
        case .connection:
            guard let tuple = key.fourTuple(), let host = endpointOfValue else { return nil }
            element = .connection(tuple, host: host)
        case .source:
            guard let tuple = key.fourTuple(), let source = endpointOfValue else { return nil }
            element = .source(tuple, as: source)
        case .client:
            guard let client = key.address(), let home = key.endpoint(), let host = endpointOfValue else { return nil }
            element = .client(client, home: home, host: host)
        case .service:
            guard let home = key.endpoint(), let host = endpointOfValue else { return nil }
            element = .service(home: home, host: host)
        case .guarded: element = key.fourTuple().map { .guarded($0) }
        case .replies: element = key.fourTuple().map { .reply($0) }
        case .answering: element = key.address().map { .answering($0) }
        case .icmpHome: element = key.address().map { .icmpHome($0) }
        case .icmpPeer: element = key.address().map { .icmpPeer($0) }
        case .endpointAddress:
            guard let number = key.mark(), case .octets(let octets) = value,
                let address = IPAddress(octets: octets[...]), address.family == set.family
            else { return nil }
            element = .endpointAddress(number: number, address)
        case .endpointPort:
            guard let number = key.mark(), let port = portOfValue else { return nil }
            element = .endpointPort(number: number, port, set.family)
        case .clientPort:
            guard let number = key.mark(), let port = portOfValue else { return nil }
            element = .clientPort(number: number, port, set.family)
        case .carried, .carriedReplies: return nil
        }
        return key.isAtEnd ? element : nil
    }

    /// The key of a four-tuple in a set of the kernel's own (`NamedSet.isOfMarks`).
    ///
    /// - Throws: `MixedFamilies` when its addresses are of both families; then `element` is to blame.
    public init(_ tuple: FourTuple, in purpose: SetName.Purpose, for element: TableElement) throws(MixedFamilies) {
        let parts = Parts(tuple)
        set = SetName(purpose, parts.family)
        key = try parts.octets(of: parts.family, in: element)
        value = .none
    }

    private var endpointOfValue: Endpoint? {
        guard case .octets(let octets) = value else { return nil }
        var reader = OctetReader(octets, family: set.family)
        guard let host = reader.endpoint(), reader.isAtEnd else { return nil }
        return host
    }
}

extension ElementForm {
    private var portOfValue: UInt16? {
        guard case .octets(let octets) = value, octets.count == 2 else { return nil }
        return UInt16(octets[0]) << 8 | UInt16(octets[1])
    }
}

extension TableElement {
    /// The set or map that it is an element of.
    public var set: SetName {
        switch self {
        case .involved(let address): SetName(.involved, address.family)
        case .divert(let tuple): SetName(.divert, tuple.source.address.family)
        case .divertConnection(let tuple): SetName(.divertConnection, tuple.source.address.family)
        case .guard(let tuple): SetName(.guard, tuple.source.address.family)
        case .credit(let client, _): SetName(.credit, client.family)
        case .divertClient(let client, _): SetName(.divertClient, client.family)
        case .divertService(let home): SetName(.divertService, home.address.family)
        case .connection(let tuple, _): SetName(.connection, tuple.source.address.family)
        case .client(let client, _, _): SetName(.client, client.family)
        case .service(let home, _): SetName(.service, home.address.family)
        case .source(let tuple, _): SetName(.source, tuple.source.address.family)
        case .guarded(let tuple): SetName(.guarded, tuple.source.address.family)
        case .reply(let tuple): SetName(.replies, tuple.source.address.family)
        case .answering(let address): SetName(.answering, address.family)
        case .icmpHome(let address): SetName(.icmpHome, address.family)
        case .icmpPeer(let address): SetName(.icmpPeer, address.family)
        case .endpointAddress(_, let address): SetName(.endpointAddress, address.family)
        case .endpointPort(_, _, let family): SetName(.endpointPort, family)
        case .clientPort(_, _, let family): SetName(.clientPort, family)
        }
    }
}

/// Addresses and ports in the order of a key.
private struct Parts {
    let family: AddressFamily
    private var isMixed = false
    private var octets: [UInt8] = []

    init(_ tuple: FourTuple) {
        family = tuple.source.address.family
        append(tuple.source)
        append(tuple.destination)
    }

    init(_ client: IPAddress, _ home: Endpoint) {
        family = client.family
        append(client)
        append(home)
    }

    init(_ endpoint: Endpoint) {
        family = endpoint.address.family
        append(endpoint)
    }

    init(_ address: IPAddress) {
        family = address.family
        append(address)
    }

    init(mark: UInt32, _ family: AddressFamily) {
        self.family = family
        octets = unsafe withUnsafeBytes(of: mark) { unsafe Array($0) }
    }

    /// A port by itself, in network order.
    static func octets(of port: UInt16) -> [UInt8] { [UInt8(port >> 8), UInt8(truncatingIfNeeded: port)] }

    private mutating func append(_ address: IPAddress) {
        if address.family != family { isMixed = true }
        if octets.isEmpty { octets.reserveCapacity(family == .ipv4 ? 16 : 40) }
        switch address {
        case .v4(let address): append(UInt64(address.rawValue), octets: 4)
        case .v6(let address):
            append(address.high, octets: 8)
            append(address.low, octets: 8)
        }
    }

    private mutating func append(_ number: UInt64, octets count: Int) {
        let shifted = (number << (64 - 8 * UInt64(count))).bigEndian
        unsafe withUnsafeBytes(of: shifted) { unsafe octets.append(contentsOf: $0.prefix(count)) }
    }

    private mutating func append(_ endpoint: Endpoint) {
        append(endpoint.address)
        append(UInt64(endpoint.port) << 16, octets: 4)
    }

    func octets(of family: AddressFamily, in element: TableElement) throws(MixedFamilies) -> [UInt8] {
        guard !isMixed, self.family == family else { throw MixedFamilies(element: element) }
        return octets
    }
}

/// Takes addresses and padded ports off the front of octets.
private struct OctetReader {
    private let octets: [UInt8]
    private let family: AddressFamily
    private var next = 0

    init(_ octets: [UInt8], family: AddressFamily) {
        self.octets = octets
        self.family = family
    }

    var isAtEnd: Bool { next == octets.count }

    /// The next octets as one number, most significant first.
    private mutating func number(octets count: Int) -> UInt64? {
        guard octets.count - next >= count else { return nil }
        var number: UInt64 = 0
        for place in next..<next + count { number = number << 8 | UInt64(octets[place]) }
        next += count
        return number
    }

    mutating func address() -> IPAddress? {
        switch family {
        case .ipv4:
            return number(octets: 4).map { .v4(IPv4Address(rawValue: UInt32(truncatingIfNeeded: $0))) }
        case .ipv6:
            guard let high = number(octets: 8), let low = number(octets: 8) else { return nil }
            return .v6(IPv6Address(high: high, low: low))
        }
    }

    mutating func mark() -> UInt32? { number(octets: 4).map { UInt32(truncatingIfNeeded: $0).bigEndian } }

    mutating func endpoint() -> Endpoint? {
        guard let address = address(), let port = number(octets: 4) else { return nil }
        return Endpoint(address: address, port: UInt16(truncatingIfNeeded: port >> 16))
    }

    mutating func fourTuple() -> FourTuple? {
        guard let source = endpoint(), let destination = endpoint() else { return nil }
        return FourTuple(source: source, destination: destination)
    }
}
