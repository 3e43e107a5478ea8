// SPDX-License-Identifier: GPL-3.0-or-later

internal import Migration
internal import Wire

/// The addresses of a session; the unspecified one in place of a client or a host that it does not have.
struct SessionAddresses {
    var client: IPAddress
    var home: IPAddress
    var host: IPAddress

    init(client: IPAddress, home: IPAddress, host: IPAddress) {
        (self.client, self.home, self.host) = (client, home, host)
    }

    init(_ session: Session) {
        home = session.key.home.address
        client = session.key.client ?? .any(home.family)
        host = session.binding?.host.address ?? .any(home.family)
    }

    init(_ addresses: WideAddresses) {
        client = .v6(addresses.client)
        home = .v6(addresses.home)
        host = .v6(addresses.host)
    }

    /// That of all of them; nil when they are of both.
    var family: AddressFamily? { client.family == home.family && host.family == home.family ? home.family : nil }
}

/// The addresses of a session of IPv6: 48 octets.
struct WideAddresses {
    var client = IPv6Address(high: 0, low: 0)
    var home = IPv6Address(high: 0, low: 0)
    var host = IPv6Address(high: 0, low: 0)

    init() {}

    init(_ addresses: SessionAddresses) {
        func wide(_ address: IPAddress) -> IPv6Address {
            let numbers = address.numbers
            return IPv6Address(high: numbers.high, low: numbers.low)
        }
        (client, home, host) = (wide(addresses.client), wide(addresses.home), wide(addresses.host))
    }
}

/// Values that are called by their places, which are taken again when they have become free.
struct SparePlaces<Value: Sendable>: Sendable {
    private var values: [Value] = []
    private var free: [UInt32] = []
    /// What stands in a place that is free.
    private let vacant: Value

    init(vacant: Value) { self.vacant = vacant }

    subscript(place: UInt32) -> Value {
        get { values[Int(place)] }
        _modify { yield &values[Int(place)] }
    }

    mutating func insert(_ value: Value) -> UInt32 {
        if let place = free.popLast() {
            values[Int(place)] = value
            return place
        }
        // An eighth at a time: doubling would cost more than it saves.
        if values.capacity == values.count { values.reserveCapacity(values.count + max(16, values.count / 8)) }
        values.append(value)
        return UInt32(values.count - 1)
    }

    mutating func remove(_ place: UInt32) {
        values[Int(place)] = vacant
        free.append(place)
        if free.count == values.count { (values, free) = ([], []) }
    }
}
