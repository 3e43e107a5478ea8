// SPDX-License-Identifier: GPL-3.0-or-later

// How addresses and endpoints are written: dotted decimal, RFC 5952 for IPv6, `[address]:port` (RFC 3986) where a
// port follows an IPv6 address.

extension IPv4Address: LosslessStringConvertible {
    /// Exactly four decimal numbers, no leading zeros (they would be octal elsewhere).
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 4 else { return nil }
        var value: UInt32 = 0
        for part in parts {
            guard (1...3).contains(part.utf8.count), part.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
                part.utf8.count == 1 || part.utf8.first != 0x30, let octet = UInt8(part)
            else { return nil }
            value = value << 8 | UInt32(octet)
        }
        self.init(rawValue: value)
    }

    public init?(_ description: String) { self.init(description[...]) }

    public var description: String {
        unsafe String(unsafeUninitializedCapacity: Self.longestText) { unsafe write(to: $0) }
    }

    fileprivate static let longestText = 15

    /// Writes the text without making strings of its parts, since journal, log and events name endpoints all the time.
    /// Returns its length.
    fileprivate func write(to text: UnsafeMutableBufferPointer<UInt8>) -> Int {
        var length = 0
        for place in 0..<4 {
            if place > 0 {
                unsafe text[length] = UInt8(ascii: ".")
                length += 1
            }
            let octet = UInt16(rawValue >> UInt32(24 - 8 * place) & 0xff)
            length += unsafe octet.write(to: UnsafeMutableBufferPointer(rebasing: text[length...]))
        }
        return length
    }
}

extension UInt16 {
    /// Writes the decimal digits and returns how many there are.
    fileprivate func write(to text: UnsafeMutableBufferPointer<UInt8>) -> Int {
        let count = self < 10 ? 1 : self < 100 ? 2 : self < 1000 ? 3 : self < 10_000 ? 4 : 5
        var rest = self
        var place = count
        while place > 0 {
            place -= 1
            unsafe text[place] = UInt8(ascii: "0") + UInt8(truncatingIfNeeded: rest % 10)
            rest /= 10
        }
        return count
    }
}

extension IPv6Address: LosslessStringConvertible {
    /// Any spelling of RFC 4291 section 2.2, without a zone.
    public init?(_ text: some StringProtocol) {
        var head: [UInt16] = []
        var tail: [UInt16] = []
        let halves = text.split(separator: "::", omittingEmptySubsequences: false)
        guard halves.count == 1 || halves.count == 2 else { return nil }
        guard Self.groups(halves[0], into: &head, last: halves.count == 1) else { return nil }
        if halves.count == 2 {
            guard Self.groups(halves[1], into: &tail, last: true), head.count + tail.count < 8 else { return nil }
        } else if head.count != 8 {
            return nil
        }
        let all = head + Array(repeating: 0, count: 8 - head.count - tail.count) + tail
        self.init(
            high: all[0..<4].reduce(0) { $0 << 16 | UInt64($1) }, low: all[4..<8].reduce(0) { $0 << 16 | UInt64($1) })
    }

    public init?(_ description: String) { self.init(description[...]) }

    /// Reads colon-separated groups; the last may be a dotted IPv4 address when `last`. False when malformed.
    private static func groups(_ text: some StringProtocol, into groups: inout [UInt16], last: Bool) -> Bool {
        if text.isEmpty { return true }
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        for (index, part) in parts.enumerated() {
            if last, index == parts.count - 1, part.contains(".") {
                guard let embedded = IPv4Address(part) else { return false }
                groups.append(UInt16(embedded.rawValue >> 16))
                groups.append(UInt16(truncatingIfNeeded: embedded.rawValue))
            } else {
                // The number parser alone would take a sign: "+1", "-0".
                guard (1...4).contains(part.utf8.count), part.utf8.allSatisfy({ $0 != 0x2b && $0 != 0x2d }),
                    let group = UInt16(part, radix: 16)
                else { return false }
                groups.append(group)
            }
        }
        return groups.count <= 8
    }

    /// RFC 5952: lower case, no leading zeros, the longest run of at least two zero groups shortened.
    public var description: String {
        let groups: [UInt16] = (0..<8).map { (index: Int) -> UInt16 in
            UInt16(truncatingIfNeeded: (index < 4 ? high : low) >> UInt64(48 - 16 * (index & 3)))
        }
        var best = 0..<0
        var start = 0
        while start < 8 {
            var end = start
            while end < 8, groups[end] == 0 { end += 1 }
            if end - start >= 2, end - start > best.count { best = start..<end }
            start = max(end, start + 1)
        }
        func text(_ range: Range<Int>) -> String {
            range.map { String(groups[$0], radix: 16) }.joined(separator: ":")
        }
        return best.isEmpty ? text(0..<8) : text(0..<best.lowerBound) + "::" + text(best.upperBound..<8)
    }
}

extension IPAddress: LosslessStringConvertible {
    public init?(_ description: String) {
        if let address = IPv4Address(description) {
            self = .v4(address)
        } else if let address = IPv6Address(description) {
            self = .v6(address)
        } else {
            return nil
        }
    }

    public var description: String {
        switch self {
        case .v4(let address): address.description
        case .v6(let address): address.description
        }
    }
}

extension Endpoint: LosslessStringConvertible {
    /// `192.0.2.1:80` or `[2001:db8::1]:80`, the port without leading zeros. Port 0 is accepted: `FlowKey` and
    /// requests use it for "any port".
    public init?(_ description: String) {
        guard let colon = description.lastIndex(of: ":") else { return nil }
        let port = description[description.index(after: colon)...]
        var address = description[..<colon]
        let bracketed = address.hasPrefix("[") && address.hasSuffix("]")
        if bracketed { address = address.dropFirst().dropLast() }
        guard port.utf8.allSatisfy({ (0x30...0x39).contains($0) }), port.utf8.count == 1 || port.utf8.first != 0x30,
            let port = UInt16(port),
            let address = IPAddress(String(address)), (address.family == .ipv6) == bracketed
        else { return nil }
        self.init(address: address, port: port)
    }

    public var description: String {
        switch address {
        case .v4(let address):
            unsafe String(unsafeUninitializedCapacity: IPv4Address.longestText + 6) { text in
                let length = unsafe address.write(to: text)
                unsafe text[length] = UInt8(ascii: ":")
                return unsafe length + 1 + port.write(to: UnsafeMutableBufferPointer(rebasing: text[(length + 1)...]))
            }
        case .v6(let address): "[\(address)]:\(port)"
        }
    }
}

extension FourTuple: CustomStringConvertible {
    /// `192.0.2.1:49152→198.51.100.6:80`, in the direction of travel.
    public var description: String { "\(source)→\(destination)" }
}
