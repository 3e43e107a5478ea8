// SPDX-License-Identifier: GPL-3.0-or-later

package import Migration
internal import Wire

extension Session {
    /// Reads a `SessionDocument` as `JSONEncoder` writes it when the session has no transits: nearly all there are, and a
    /// decoder takes fifty times as long. nil for everything else, be it correct or not; a decoder then decides.
    package init?(scanning text: String, _ texts: inout EndpointTexts) {
        var scanner = DocumentScanner(text.utf8.span)
        var (id, client, isOfEveryClient, clientPort): (UInt64?, IPAddress?, Bool, UInt16?) = (nil, nil, false, nil)
        var (home, host, datapath, sourcePort): (Endpoint?, Endpoint?, Datapath?, UInt16?)
        var isPlain = false
        guard scanner.skip(UInt8(ascii: "{")) else { return nil }
        repeat {
            guard let name = scanner.word(), scanner.skip(UInt8(ascii: ":")) else { return nil }
            switch name {
            case Member.id:
                id = scanner.number()
                if id == nil { return nil }
            case Member.client:
                client = scanner.address()
                if client == nil {
                    guard scanner.string() == SessionKey.everyClient else { return nil }
                    isOfEveryClient = true
                }
            case Member.clientPort:
                clientPort = scanner.port()
                if clientPort == nil { return nil }
            case Member.sourcePort:
                sourcePort = scanner.port()
                if sourcePort == nil { return nil }
            case Member.home:
                home = scanner.endpoint(&texts)
                if home == nil { return nil }
            case Member.host:
                host = scanner.endpoint(&texts)
                if host == nil { return nil }
            case Member.datapath:
                switch scanner.word() {
                case Member.kernel: datapath = .kernel
                case Member.queue: datapath = .queue
                default: return nil
                }
            case Member.transits: isPlain = scanner.skip(UInt8(ascii: "[")) && scanner.skip(UInt8(ascii: "]"))
            default: return nil
            }
        } while scanner.skip(UInt8(ascii: ","))
        guard scanner.skip(UInt8(ascii: "}")), scanner.isAtEnd, isPlain, let id, let home,
            client != nil || isOfEveryClient
        else { return nil }
        var binding: Binding?
        if let host, let datapath { binding = Binding(host: host, datapath: datapath, sourcePort: sourcePort) }
        self.init(key: SessionKey(client: client, clientPort: clientPort, home: home), id: id, binding: binding)
    }
}

/// The words of such a document, as `DocumentScanner.word` reads them.
private enum Member {
    static let id = word("id")
    static let client = word("client")
    static let clientPort = word("clientPort")
    static let home = word("home")
    static let host = word("host")
    static let datapath = word("datapath")
    static let sourcePort = word("sourcePort")
    static let transits = word("transits")
    static let kernel = word("kernel")
    static let queue = word("queue")

    private static func word(_ text: String) -> UInt128 { text.utf8.reduce(0) { $0 << 8 | UInt128($1) } }
}

/// Takes the simplest parts of a JSON text off its beginning.
private struct DocumentScanner: ~Escapable {
    private let octets: Span<UInt8>
    private var offset = 0

    @_lifetime(copy octets)
    init(_ octets: Span<UInt8>) { self.octets = octets }

    var isAtEnd: Bool { offset == octets.count }

    /// Takes this octet, and blanks before it, if it comes next.
    mutating func skip(_ octet: UInt8) -> Bool {
        while offset < octets.count, octets[offset] == UInt8(ascii: " ") { offset += 1 }
        guard offset < octets.count, octets[offset] == octet else { return false }
        offset += 1
        return true
    }

    /// Takes a string of at most 16 octets of printable ASCII without escapes, as a number: its octets, the first in the
    /// highest.
    mutating func word() -> UInt128? {
        guard skip(UInt8(ascii: "\"")) else { return nil }
        var (word, count): (UInt128, Int) = (0, 0)
        while offset < octets.count, octets[offset] != UInt8(ascii: "\"") {
            guard octets[offset] != UInt8(ascii: "\\"), (0x20..<0x7f).contains(octets[offset]), count < 16 else {
                return nil
            }
            word = word << 8 | UInt128(octets[offset])
            offset += 1
            count += 1
        }
        guard offset < octets.count else { return nil }
        offset += 1
        return word
    }

    mutating func port() -> UInt16? { number().flatMap(UInt16.init(exactly:)) }

    /// Takes a string that is an address; takes nothing when it is none.
    mutating func address() -> IPAddress? {
        let start = offset
        if skip(UInt8(ascii: "\"")), let address = dotted(), take(UInt8(ascii: "\"")) { return .v4(address) }
        offset = start
        if skip(UInt8(ascii: "\"")), let address = groups(), take(UInt8(ascii: "\"")) { return .v6(address) }
        offset = start
        if let address = string().flatMap({ IPAddress($0) }) { return address }
        offset = start
        return nil
    }

    /// Takes a string that is an endpoint.
    mutating func endpoint(_ texts: inout EndpointTexts) -> Endpoint? {
        let start = offset
        if skip(UInt8(ascii: "\"")), let address = dotted(), take(UInt8(ascii: ":")),
            let port = decimal(5).flatMap(UInt16.init(exactly:)), take(UInt8(ascii: "\""))
        {
            return Endpoint(address: .v4(address), port: port)
        }
        offset = start
        if skip(UInt8(ascii: "\"")), take(UInt8(ascii: "[")), let address = groups(), take(UInt8(ascii: "]")),
            take(UInt8(ascii: ":")), let port = decimal(5).flatMap(UInt16.init(exactly:)), take(UInt8(ascii: "\""))
        {
            return Endpoint(address: .v6(address), port: port)
        }
        offset = start
        return string().flatMap { texts.endpoint($0) }
    }

    /// Takes an address of IPv4.
    private mutating func dotted() -> IPv4Address? {
        var value: UInt32 = 0
        for place in 0..<4 {
            if place > 0, !take(UInt8(ascii: ".")) { return nil }
            guard let octet = decimal(3), octet < 256 else { return nil }
            value = value << 8 | octet
        }
        return IPv4Address(rawValue: value)
    }

    /// Takes an address of IPv6, but for one that ends as an address of IPv4 is written.
    private mutating func groups() -> IPv6Address? {
        // Before and behind the gap, which stands for as many groups as are missing.
        var (head, tail): (UInt128, UInt128) = (0, 0)
        var (headCount, tailCount, hasGap, isOpen) = (0, 0, false, false)
        if take(UInt8(ascii: ":")) {
            guard take(UInt8(ascii: ":")) else { return nil }
            hasGap = true
        }
        while let group = hexadecimal() {
            if hasGap {
                (tail, tailCount) = (tail << 16 | group, tailCount + 1)
            } else {
                (head, headCount) = (head << 16 | group, headCount + 1)
            }
            isOpen = take(UInt8(ascii: ":"))
            if isOpen, take(UInt8(ascii: ":")) {
                if hasGap { return nil }
                (hasGap, isOpen) = (true, false)
            } else if !isOpen {
                break
            }
        }
        let count = headCount + tailCount
        guard !isOpen, hasGap ? count < 8 : count == 8 else { return nil }
        let value = head << UInt128(16 * (8 - headCount)) | tail
        return IPv6Address(high: UInt64(truncatingIfNeeded: value >> 64), low: UInt64(truncatingIfNeeded: value))
    }

    /// Takes a number of one to four hexadecimal digits; takes nothing when there is none.
    private mutating func hexadecimal() -> UInt128? {
        var (value, count): (UInt128, Int) = (0, 0)
        while offset < octets.count, count < 4 {
            let digit: UInt8
            switch octets[offset] {
            case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = octets[offset] - UInt8(ascii: "0")
            case UInt8(ascii: "a")...UInt8(ascii: "f"): digit = octets[offset] - UInt8(ascii: "a") + 10
            default: return count == 0 ? nil : value
            }
            value = value << 4 | UInt128(digit)
            offset += 1
            count += 1
        }
        return count == 0 ? nil : value
    }

    /// Takes this octet if it is the very next.
    private mutating func take(_ octet: UInt8) -> Bool {
        guard offset < octets.count, octets[offset] == octet else { return false }
        offset += 1
        return true
    }

    /// Takes a number of so many digits at most, the first of which is no 0 that could be left out.
    private mutating func decimal(_ most: Int) -> UInt32? {
        var (value, count): (UInt32, Int) = (0, 0)
        while offset < octets.count, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(octets[offset]) {
            if count == most || count > 0 && value == 0 { return nil }
            value = value * 10 + UInt32(octets[offset] - UInt8(ascii: "0"))
            offset += 1
            count += 1
        }
        return count == 0 ? nil : value
    }

    /// Takes a string of printable ASCII without escapes.
    mutating func string() -> String? {
        guard skip(UInt8(ascii: "\"")) else { return nil }
        let start = offset
        while offset < octets.count, octets[offset] != UInt8(ascii: "\"") {
            guard octets[offset] != UInt8(ascii: "\\"), (0x20..<0x7f).contains(octets[offset]) else { return nil }
            offset += 1
        }
        guard offset < octets.count else { return nil }
        let content = octets.extracting(start..<offset)
        offset += 1
        return unsafe String(unsafeUninitializedCapacity: content.count) { buffer in
            for index in content.indices { unsafe buffer[index] = content[index] }
            return content.count
        }
    }

    /// Takes a whole number without sign.
    mutating func number() -> UInt64? {
        while offset < octets.count, octets[offset] == UInt8(ascii: " ") { offset += 1 }
        var value: UInt64 = 0
        let start = offset
        while offset < octets.count, (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(octets[offset]) {
            let (product, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = product.addingReportingOverflow(UInt64(octets[offset] - UInt8(ascii: "0")))
            if overflow || carry { return nil }
            value = sum
            offset += 1
        }
        return offset == start ? nil : value
    }
}
