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
        let purpose: SetName.Purpose
        let parts: Parts
        var value = Value.none
        switch element {
        case .involved(let address): (purpose, parts) = (.involved, Parts(address))
        case .divert(let tuple): (purpose, parts) = (.divert, Parts(tuple))
        case .divertConnection(let tuple): (purpose, parts) = (.divertConnection, Parts(tuple))
        case .guard(let tuple): (purpose, parts) = (.guard, Parts(tuple))
        case .credit(let client, let home): (purpose, parts) = (.credit, Parts(client, home))
        case .divertClient(let client, let home): (purpose, parts) = (.divertClient, Parts(client, home))
        case .divertService(let home): (purpose, parts) = (.divertService, Parts(home))
        case .connection(let tuple, let host):
            (purpose, parts) = (.connection, Parts(tuple))
            value = .octets(try Parts(host).octets(of: tuple.source.address.family, in: element))
        case .client(let client, let home, let host):
            (purpose, parts) = (.client, Parts(client, home))
            value = .octets(try Parts(host).octets(of: client.family, in: element))
        case .service(let home, let host):
            (purpose, parts) = (.service, Parts(home))
            value = .octets(try Parts(host).octets(of: home.address.family, in: element))
        case .source(let tuple, let source):
            (purpose, parts) = (.source, Parts(tuple))
            value = .octets(try Parts(source).octets(of: tuple.source.address.family, in: element))
        case .guarded(let tuple): (purpose, parts) = (.guarded, Parts(tuple))
        case .reply(let tuple): (purpose, parts) = (.replies, Parts(tuple))
        case .answering(let address): (purpose, parts) = (.answering, Parts(address))
        case .icmpHome(let address): (purpose, parts) = (.icmpHome, Parts(address))
        case .icmpPeer(let address): (purpose, parts) = (.icmpPeer, Parts(address))
        case .endpointAddress(let number, let address):
            (purpose, parts) = (.endpointAddress, Parts(mark: number, address.family))
            value = .octets(address.octets)
        case .endpointPort(let number, let port, let family):
            (purpose, parts) = (.endpointPort, Parts(mark: number, family))
            value = .octets(Parts.octets(of: port))
        case .clientPort(let number, let port, let family):
            (purpose, parts) = (.clientPort, Parts(mark: number, family))
            value = .octets(Parts.octets(of: port))
        }
        set = SetName(purpose, parts.family)
        key = try parts.octets(of: parts.family, in: element)
        self.value = value
    }

    /// The element of this form; nil when key or value is none of ours.
    public var element: TableElement? {
        var key = OctetReader(key[...], family: set.family)
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
        var reader = OctetReader(octets[...], family: set.family)
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

    private mutating func append(_ number: UInt64, octets count: UInt64) {
        for place in (0..<count).reversed() { octets.append(UInt8(truncatingIfNeeded: number >> (8 * place))) }
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
    private var rest: ArraySlice<UInt8>
    private let family: AddressFamily

    init(_ octets: ArraySlice<UInt8>, family: AddressFamily) {
        rest = octets
        self.family = family
    }

    var isAtEnd: Bool { rest.isEmpty }

    mutating func address() -> IPAddress? {
        let length = family == .ipv4 ? 4 : 16
        guard rest.count >= length else { return nil }
        defer { rest = rest.dropFirst(length) }
        return IPAddress(octets: rest.prefix(length))
    }

    mutating func mark() -> UInt32? {
        guard rest.count >= 4 else { return nil }
        defer { rest = rest.dropFirst(4) }
        var mark: UInt32 = 0
        unsafe withUnsafeMutableBytes(of: &mark) { unsafe $0.copyBytes(from: rest.prefix(4)) }
        return mark
    }

    mutating func endpoint() -> Endpoint? {
        guard let address = address(), rest.count >= 4 else { return nil }
        defer { rest = rest.dropFirst(4) }
        let port = rest.prefix(2).reduce(0 as UInt16) { $0 << 8 | UInt16($1) }
        return Endpoint(address: address, port: port)
    }

    mutating func fourTuple() -> FourTuple? {
        guard let source = endpoint(), let destination = endpoint() else { return nil }
        return FourTuple(source: source, destination: destination)
    }
}
