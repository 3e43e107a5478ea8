// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// A flow of IPv4, and its rule.
@frozen
@usableFromInline
internal struct NarrowSlot: FlowSlot {
    /// What a `FlowRule` is, apart from its passage.
    @frozen
    @usableFromInline
    enum Kind: UInt8 {
        case freeze
        case awaitSYN
        case reconnected
        case holdSYN
        case awaitDecision
        case passage
        /// The rule names an endpoint of IPv6, and stands in the table of wide slots.
        case elsewhere
    }

    /// What a `Passage` is, apart from its endpoint.
    @frozen
    @usableFromInline
    enum Way: UInt8 {
        case pass
        case translateDestination
        case translateSource
    }

    @usableFromInline let key: NarrowKey
    @usableFromInline private(set) var kind = Kind.freeze
    @usableFromInline private(set) var way = Way.pass
    @usableFromInline private(set) var address: UInt32 = 0
    @usableFromInline private(set) var port: UInt16 = 0
    @usableFromInline private(set) var clientPort: UInt16 = 0

    @usableFromInline
    init() { key = NarrowKey() }

    init(elsewhere key: NarrowKey) {
        self.key = key
        kind = .elsewhere
    }

    /// nil when the rule names an endpoint of IPv6.
    init?(key: NarrowKey, rule: FlowRule) {
        self.key = key
        let passage: Passage
        switch rule {
        case .freeze: (kind, passage) = (.freeze, .pass)
        case .awaitSYN(let rule): (kind, passage) = (.awaitSYN, rule)
        case .reconnected(let rule): (kind, passage) = (.reconnected, rule)
        case .holdSYN(let rule): (kind, passage) = (.holdSYN, rule)
        case .awaitDecision: (kind, passage) = (.awaitDecision, .pass)
        case .passage(let rule): (kind, passage) = (.passage, rule)
        }
        let endpoint: Endpoint
        switch passage {
        case .pass: return
        case .translateDestination(let host, let clientPort):
            (way, endpoint, self.clientPort) = (.translateDestination, host, clientPort)
        case .translateSource(let home, let clientPort):
            (way, endpoint, self.clientPort) = (.translateSource, home, clientPort)
        }
        guard case .v4(let number) = endpoint.address else { return nil }
        (address, port) = (number.rawValue, endpoint.port)
    }

    @inlinable @inline(__always)
    var isElsewhere: Bool { kind == .elsewhere }

    @inlinable @inline(__always)
    var rule: FlowRule {
        switch kind {
        case .passage: .passage(passage)
        case .awaitSYN: .awaitSYN(passage)
        case .reconnected: .reconnected(passage)
        case .holdSYN: .holdSYN(passage)
        case .awaitDecision: .awaitDecision
        case .freeze, .elsewhere: .freeze
        }
    }

    @inlinable @inline(__always)
    var passage: Passage {
        let endpoint = Endpoint(address: .v4(IPv4Address(rawValue: address)), port: port)
        return switch way {
        case .pass: .pass
        case .translateDestination: .translateDestination(endpoint, clientPort: clientPort)
        case .translateSource: .translateSource(endpoint, clientPort: clientPort)
        }
    }

    /// The rule passes everything from now on, in the way it has.
    @usableFromInline
    mutating func reconnect() { kind = .reconnected }
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

/// A flow with an address of IPv6, and its rule: one cache line.
@frozen
@usableFromInline
internal struct WideSlot: FlowSlot {
    @usableFromInline let key: PackedKey
    @usableFromInline var rule: FlowRule

    @usableFromInline
    init() {
        key = PackedKey()
        rule = .freeze
    }

    init(key: PackedKey, rule: FlowRule) {
        self.key = key
        self.rule = rule
    }
}

/// A `FlowKey` as five numbers, so that comparing and hashing need no branches.
@frozen
@usableFromInline
internal struct PackedKey: SlotKey {
    @usableFromInline var sourceHigh: UInt64
    @usableFromInline var sourceLow: UInt64
    @usableFromInline var destinationHigh: UInt64
    @usableFromInline var destinationLow: UInt64
    /// Both ports, the two families, the stage, and 1 for a slot that is taken.
    @usableFromInline var rest: UInt64

    /// The key of a vacant slot, which no flow has.
    @inlinable
    init() {
        sourceHigh = 0
        sourceLow = 0
        destinationHigh = 0
        destinationLow = 0
        rest = 0
    }

    @inlinable @inline(__always)
    init(_ key: FlowKey) {
        (sourceHigh, sourceLow) = Self.numbers(key.tuple.source.address)
        (destinationHigh, destinationLow) = Self.numbers(key.tuple.destination.address)
        let families =
            UInt64(key.tuple.source.address.family.rawValue) << 24
            | UInt64(key.tuple.destination.address.family.rawValue) << 16
        rest =
            UInt64(key.tuple.source.port) << 48 | UInt64(key.tuple.destination.port) << 32 | families
            | UInt64(key.stage.rawValue) << 8 | 1
    }

    @inlinable @inline(__always)
    static func numbers(_ address: IPAddress) -> (UInt64, UInt64) {
        switch address {
        case .v4(let address): (0, UInt64(address.rawValue))
        case .v6(let address): (address.high, address.low)
        }
    }

    @inlinable @inline(__always)
    var isVacant: Bool { rest == 0 }

    @inlinable @inline(__always)
    static func == (left: PackedKey, right: PackedKey) -> Bool {
        (left.sourceHigh ^ right.sourceHigh) | (left.sourceLow ^ right.sourceLow)
            | (left.destinationHigh ^ right.destinationHigh) | (left.destinationLow ^ right.destinationLow)
            | (left.rest ^ right.rest) == 0
    }

    /// Folded 64 × 64 → 128-bit products over pairs of numbers, each made secret by the seed first (the construction of
    /// wyhash): without the seed, keys that fall together cannot be chosen.
    @inlinable @inline(__always)
    func hash(_ seed: UInt64) -> UInt64 {
        var state = Self.fold(seed ^ rest, seed.byteSwapped ^ 0x9e37_79b9_7f4a_7c15)
        state = Self.fold(state ^ sourceLow, seed ^ sourceHigh ^ 0xa076_1d64_78bd_642f)
        state = Self.fold(state ^ destinationLow, seed ^ destinationHigh ^ 0xe703_7ed1_a0b4_28db)
        return Self.fold(state, seed ^ 0x8ebc_6af0_9c88_c6e3)
    }
}
