// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// What a `FlowRule` is, apart from the endpoint that it writes and the client's port.
@frozen
@usableFromInline
internal struct RuleShape {
    @frozen
    @usableFromInline
    enum Kind: UInt8 {
        case freeze
        case awaitSYN
        case reconnected
        case holdSYN
        case awaitDecision
        case passage
        /// Of a narrow slot: the rule names an endpoint of IPv6, and stands in the table of wide slots.
        case elsewhere
    }

    @frozen
    @usableFromInline
    enum Way: UInt8 {
        case pass
        case translateDestination
        case translateSource
    }

    @usableFromInline var kind: Kind
    @usableFromInline var way: Way

    @usableFromInline
    init(kind: Kind) { (self.kind, way) = (kind, .pass) }

    init(_ rule: FlowRule) {
        let passage: Passage
        switch rule {
        case .freeze: (kind, passage) = (.freeze, .pass)
        case .awaitSYN(let rule): (kind, passage) = (.awaitSYN, rule)
        case .reconnected(let rule): (kind, passage) = (.reconnected, rule)
        case .holdSYN(let rule): (kind, passage) = (.holdSYN, rule)
        case .awaitDecision: (kind, passage) = (.awaitDecision, .pass)
        case .passage(let rule): (kind, passage) = (.passage, rule)
        }
        way =
            switch passage {
            case .pass: .pass
            case .translateDestination: .translateDestination
            case .translateSource: .translateSource
            }
    }

    /// The rule of this shape with what it writes.
    @inlinable @inline(__always)
    func rule(_ endpoint: Endpoint, clientPort: UInt16) -> FlowRule {
        switch kind {
        case .passage: .passage(passage(endpoint, clientPort))
        case .awaitSYN: .awaitSYN(passage(endpoint, clientPort))
        case .reconnected: .reconnected(passage(endpoint, clientPort))
        case .holdSYN: .holdSYN(passage(endpoint, clientPort))
        case .awaitDecision: .awaitDecision
        case .freeze, .elsewhere: .freeze
        }
    }

    @inlinable @inline(__always)
    func passage(_ endpoint: Endpoint, _ clientPort: UInt16) -> Passage {
        switch way {
        case .pass: .pass
        case .translateDestination: .translateDestination(endpoint, clientPort: clientPort)
        case .translateSource: .translateSource(endpoint, clientPort: clientPort)
        }
    }
}

/// A flow of IPv4, and its rule: 24 octets.
@frozen
@usableFromInline
internal struct NarrowSlot: FlowSlot {
    @usableFromInline let key: NarrowKey
    @usableFromInline private(set) var shape = RuleShape(kind: .freeze)
    @usableFromInline private(set) var address: UInt32 = 0
    @usableFromInline private(set) var port: UInt16 = 0
    @usableFromInline private(set) var clientPort: UInt16 = 0

    @usableFromInline
    init() { key = NarrowKey() }

    init(elsewhere key: NarrowKey) {
        self.key = key
        shape = RuleShape(kind: .elsewhere)
    }

    /// nil when the rule names an endpoint of IPv6.
    init?(key: NarrowKey, rule: FlowRule) {
        self.key = key
        shape = RuleShape(rule)
        guard let translation = rule.translation else { return }
        guard case .v4(let number) = translation.endpoint.address else { return nil }
        (address, port, clientPort) = (number.rawValue, translation.endpoint.port, translation.clientPort)
    }

    @inlinable @inline(__always)
    var isElsewhere: Bool { shape.kind == .elsewhere }

    @inlinable @inline(__always)
    var rule: FlowRule {
        shape.rule(Endpoint(address: .v4(IPv4Address(rawValue: address)), port: port), clientPort: clientPort)
    }

    /// The rule passes everything from now on, in the way it has.
    @usableFromInline
    mutating func reconnect() { shape.kind = .reconnected }
}

/// A `FlowKey` of IPv4 as four numbers, so that comparing and hashing need no branches.
@frozen
@usableFromInline
internal struct NarrowKey: SlotKey {
    @usableFromInline let source: UInt32
    @usableFromInline let destination: UInt32
    /// The source's port, then the destination's.
    @usableFromInline let ports: UInt32
    /// 1 and 2 for the stages, 0 for a slot that is vacant.
    @usableFromInline let stage: UInt8

    /// The key of a vacant slot, which no flow has.
    init() { (source, destination, ports, stage) = (0, 0, 0, 0) }

    /// nil when an address is of IPv6.
    @inlinable @inline(__always)
    init?(_ key: FlowKey) {
        guard case .v4(let source) = key.tuple.source.address, case .v4(let destination) = key.tuple.destination.address
        else { return nil }
        self.source = source.rawValue
        self.destination = destination.rawValue
        ports = UInt32(key.tuple.source.port) << 16 | UInt32(key.tuple.destination.port)
        stage = key.stage.rawValue &+ 1
    }

    @inlinable @inline(__always)
    var isVacant: Bool { stage == 0 }

    @inlinable @inline(__always)
    static func == (left: NarrowKey, right: NarrowKey) -> Bool {
        (left.source ^ right.source) | (left.destination ^ right.destination) | (left.ports ^ right.ports)
            | UInt32(left.stage ^ right.stage) == 0
    }

    @inlinable @inline(__always)
    func hash(_ seed: UInt64) -> UInt64 {
        let addresses = UInt64(source) << 32 | UInt64(destination)
        var state = Self.fold(
            seed ^ (UInt64(ports) << 8 | UInt64(stage)), seed.byteSwapped ^ 0x9e37_79b9_7f4a_7c15)
        state = Self.fold(state ^ addresses, seed ^ 0xa076_1d64_78bd_642f)
        return Self.fold(state, seed ^ 0x8ebc_6af0_9c88_c6e3)
    }
}
