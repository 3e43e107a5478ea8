// SPDX-License-Identifier: GPL-3.0-or-later

// Netlink attributes (linux/netlink.h, struct nlattr): length and type in host byte order, then the value, padded to a
// multiple of four. Conntrack's values are in network byte order.

/// Walks the attributes in a span of octets. A malformed tail ends the walk.
struct AttributeReader: ~Escapable {
    private var rest: Span<UInt8>

    @_lifetime(copy octets)
    init(_ octets: Span<UInt8>) { rest = octets }

    /// The next attribute's type, without its flag bits, and value; nil at the end.
    @_lifetime(copy self)
    mutating func next() -> Attribute? {
        guard rest.count >= 4 else { return nil }
        let length = Int(rest.hostInteger16(at: 0))
        guard length >= 4, length <= rest.count else { return nil }
        let attribute = Attribute(type: rest.hostInteger16(at: 2) & 0x3fff, value: rest.extracting(4..<length))
        rest = rest.extracting(min((length + 3) & ~3, rest.count)..<rest.count)
        return attribute
    }
}

/// One attribute.
struct Attribute: ~Escapable {
    let type: UInt16
    let value: Span<UInt8>

    @_lifetime(copy value)
    init(type: UInt16, value: Span<UInt8>) {
        self.type = type
        self.value = value
    }
}

extension Span where Element == UInt8 {
    /// A number in host byte order, as netlink's own headers have it. The span must reach so far.
    func hostInteger16(at offset: Int) -> UInt16 {
        UInt16(bigEndian: UInt16(truncatingIfNeeded: integer(at: offset, size: 2)))
    }

    func hostInteger32(at offset: Int) -> UInt32 {
        UInt32(bigEndian: UInt32(truncatingIfNeeded: integer(at: offset, size: 4)))
    }

    /// A number in network byte order that fills the span; 0 for a span of another size.
    func networkInteger<Number: FixedWidthInteger & UnsignedInteger>(_: Number.Type = Number.self) -> Number {
        count == MemoryLayout<Number>.size ? Number(truncatingIfNeeded: integer(at: 0, size: count)) : 0
    }

    /// The octets from `offset` on, most significant first.
    private func integer(at offset: Int, size: Int) -> UInt64 {
        var value: UInt64 = 0
        for index in offset..<offset + size { value = value << 8 | UInt64(self[index]) }
        return value
    }
}

/// A netlink message in the making.
struct MessageWriter {
    private(set) var octets: [UInt8] = []

    /// Begins with the headers of netlink and nfnetlink (struct nlmsghdr, struct nfgenmsg); the length is filled in
    /// last.
    init(type: UInt16, flags: UInt16, sequence: UInt32, family: UInt8) {
        putHost(UInt32(0))
        putHost(type)
        putHost(flags)
        putHost(sequence)
        putHost(UInt32(0))
        octets += [family, 0, 0, 0]
    }

    /// The message with its length.
    var finished: [UInt8] {
        var message = octets
        message.replaceSubrange(0..<4, with: Self.hostOctets(UInt32(octets.count)))
        return message
    }

    mutating func put(_ type: some BinaryInteger, _ value: [UInt8]) {
        putHost(UInt16(4 + value.count))
        putHost(UInt16(type))
        octets += value
        while octets.count % 4 != 0 { octets.append(0) }
    }

    /// A number in network byte order.
    mutating func put<Number: FixedWidthInteger>(_ type: some BinaryInteger, network value: Number) {
        let count = MemoryLayout<Number>.size
        put(type, (0..<count).map { UInt8(truncatingIfNeeded: value >> Number(8 * (count - 1 - $0))) })
    }

    /// A number in host byte order.
    mutating func put(_ type: some BinaryInteger, host value: UInt32) { put(type, Self.hostOctets(value)) }

    /// An attribute that holds others (NLA_F_NESTED).
    mutating func nest(_ type: some BinaryInteger, _ body: (inout MessageWriter) -> Void) {
        let start = octets.count
        putHost(UInt16(0))
        putHost(UInt16(type) | 0x8000)
        body(&self)
        octets.replaceSubrange(start..<start + 2, with: Self.hostOctets(UInt16(octets.count - start)))
    }

    private mutating func putHost(_ value: some FixedWidthInteger) { octets += Self.hostOctets(value) }

    /// The octets as they lie in memory on this machine.
    private static func hostOctets<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
        let count = MemoryLayout<Number>.size
        let network = value.bigEndian
        // `bigEndian` is the number whose memory is the network order of `value`; shifting from the top of that undoes
        // it.
        return (0..<count).map { UInt8(truncatingIfNeeded: network >> Number(8 * (count - 1 - $0))) }
    }
}
