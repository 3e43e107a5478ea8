// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// Endpoints that many flows share, each called by its place: four octets instead of twenty. It holds as many as are used, and
/// takes memory in `take` only.
@frozen
@usableFromInline
internal struct EndpointRegister: ~Copyable {
    @usableFromInline internal var places: FlowSlots<Place>
    /// By place.
    @usableFromInline internal var endpoints: [Endpoint] = []
    /// How often each is used; 0 for places that are free.
    private var uses: [UInt32] = []
    private var free: [UInt32] = []

    @usableFromInline
    init() { places = FlowSlots(capacity: 0) }

    @inlinable
    subscript(place: UInt32) -> Endpoint {
        @inline(__always) get { endpoints[Int(place)] }
    }

    /// Where an endpoint is, when anybody uses it.
    @inlinable @inline(__always)
    func place(of endpoint: Endpoint, _ seed: UInt64) -> UInt32? {
        places.find(EndpointKey(endpoint), seed).map { places[$0].place }
    }

    /// Uses an endpoint once more. Its place, which stays the same until everybody has released it.
    mutating func take(_ endpoint: Endpoint, _ seed: UInt64) -> UInt32 {
        if let place = place(of: endpoint, seed) {
            uses[Int(place)] += 1
            return place
        }
        let place: UInt32
        if let vacant = free.popLast() {
            place = vacant
            endpoints[Int(place)] = endpoint
            uses[Int(place)] = 1
        } else {
            place = UInt32(endpoints.count)
            endpoints.append(endpoint)
            uses.append(1)
        }
        _ = places.set(Place(key: EndpointKey(endpoint), place: place), seed)
        return place
    }

    mutating func release(_ place: UInt32, _ seed: UInt64) {
        uses[Int(place)] -= 1
        guard uses[Int(place)] == 0 else { return }
        _ = places.remove(EndpointKey(endpoints[Int(place)]), seed)
        free.append(place)
    }

    /// How many are used.
    var count: Int { endpoints.count - free.count }

    @frozen
    @usableFromInline
    struct Place: FlowSlot {
        @usableFromInline let key: EndpointKey
        @usableFromInline let place: UInt32

        @usableFromInline
        init() { (key, place) = (EndpointKey(), 0) }

        init(key: EndpointKey, place: UInt32) { (self.key, self.place) = (key, place) }
    }
}

/// An endpoint as three numbers.
@frozen
@usableFromInline
internal struct EndpointKey: SlotKey {
    @usableFromInline let high: UInt64
    @usableFromInline let low: UInt64
    /// Port and family; 0 for no endpoint.
    @usableFromInline let rest: UInt64

    @inlinable
    init() { (high, low, rest) = (0, 0, 0) }

    @inlinable @inline(__always)
    init(_ endpoint: Endpoint) {
        (high, low) = endpoint.address.numbers
        rest = UInt64(endpoint.port) << 32 | UInt64(endpoint.address.family.rawValue)
    }

    @inlinable @inline(__always)
    var isVacant: Bool { rest == 0 }

    @inlinable @inline(__always)
    static func == (left: EndpointKey, right: EndpointKey) -> Bool {
        (left.high ^ right.high) | (left.low ^ right.low) | (left.rest ^ right.rest) == 0
    }

    @inlinable @inline(__always)
    func hash(_ seed: UInt64) -> UInt64 { Self.hash(high, low, rest, seed) }
}
