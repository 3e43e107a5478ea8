// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// A flow with an address of IPv6, and its rule: 32 octets. The endpoint that is not the client's, mostly, and the one that
/// the rule writes are places in an `EndpointRegister`.
@frozen
@usableFromInline
internal struct WideSlot: FlowSlot {
    @usableFromInline let key: WideKey
    /// Where what the rule writes is registered, if it writes anything.
    @usableFromInline private(set) var written: UInt32 = 0
    @usableFromInline private(set) var clientPort: UInt16 = 0
    @usableFromInline private(set) var shape = RuleShape(kind: .freeze)

    @usableFromInline
    init() { key = WideKey() }

    /// `written`: of the endpoint in the rule's translation; it is ignored when there is none.
    init(key: WideKey, rule: FlowRule, written: UInt32) {
        self.key = key
        shape = RuleShape(rule)
        guard let translation = rule.translation else { return }
        (self.written, clientPort) = (written, translation.clientPort)
    }

    @inlinable @inline(__always)
    var writes: Bool { shape.way != .pass }

    @inlinable @inline(__always)
    func rule(_ endpoints: borrowing EndpointRegister) -> FlowRule {
        let endpoint = writes ? endpoints[written] : Endpoint(address: .any(.ipv6), port: 0)
        return shape.rule(endpoint, clientPort: clientPort)
    }

    /// The rule passes everything from now on, in the way it has.
    @usableFromInline
    mutating func reconnect() { shape.kind = .reconnected }
}

/// A `FlowKey` as three numbers, so that comparing and hashing need no branches.
@frozen
@usableFromInline
internal struct WideKey: SlotKey {
    @usableFromInline var high: UInt64
    @usableFromInline var low: UInt64
    /// The registered endpoint's place, the other one's port and family, the stage, and 1 for a slot that is taken.
    @usableFromInline var rest: UInt64

    /// The key of a vacant slot, which no flow has.
    @inlinable
    init() { (high, low, rest) = (0, 0, 0) }

    /// `place` is that of the key's registered endpoint.
    @inlinable @inline(__always)
    init(_ key: FlowKey, _ place: UInt32) {
        let other = key.unregistered
        (high, low) = other.address.numbers
        rest =
            UInt64(place) << 32 | UInt64(other.port) << 16 | UInt64(other.address.family.rawValue) << 8
            | UInt64(key.stage.rawValue) << 1 | 1
    }

    @inlinable @inline(__always)
    var isVacant: Bool { rest == 0 }

    /// Where the registered endpoint is.
    var place: UInt32 { UInt32(truncatingIfNeeded: rest >> 32) }

    /// The key that covers this flow together with the client's other ports.
    @inlinable @inline(__always)
    var anyPort: WideKey {
        var key = self
        key.rest &= ~0xffff_0000
        return key
    }

    /// The key that covers this flow together with those of all other clients.
    @inlinable @inline(__always)
    var anyClient: WideKey {
        var key = anyPort
        (key.high, key.low) = (0, 0)
        return key
    }

    @inlinable @inline(__always)
    static func == (left: WideKey, right: WideKey) -> Bool {
        (left.high ^ right.high) | (left.low ^ right.low) | (left.rest ^ right.rest) == 0
    }

    @inlinable @inline(__always)
    func hash(_ seed: UInt64) -> UInt64 { Self.hash(high, low, rest, seed) }
}

extension FlowKey {
    /// The endpoint that few flows do not share: in prerouting the destination, in postrouting the source. Of a transit
    /// towards a client it is the client's, which is registered as long as the transit stands.
    @inlinable @inline(__always)
    var registered: Endpoint { stage == .prerouting ? tuple.destination : tuple.source }

    /// The other endpoint: a client's, mostly.
    @inlinable @inline(__always)
    var unregistered: Endpoint { stage == .prerouting ? tuple.source : tuple.destination }
}
