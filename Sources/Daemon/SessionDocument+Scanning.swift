// SPDX-License-Identifier: GPL-3.0-or-later

extension SessionDocument {
    /// Reads a document as `JSONEncoder` writes it when the session has no transits: nearly all there are, and a decoder
    /// takes twenty times as long. nil for everything else, be it correct or not; a decoder then decides.
    package init?(scanning text: String) {
        var scanner = DocumentScanner(text.utf8.span)
        var (id, client, clientPort, home): (UInt64?, String?, UInt16?, String?)
        var (host, datapath, sourcePort): (String?, String?, UInt16?)
        var isPlain = false
        guard scanner.skip(UInt8(ascii: "{")) else { return nil }
        repeat {
            guard let name = scanner.string(), scanner.skip(UInt8(ascii: ":")) else { return nil }
            switch name {
            case "id": id = scanner.number()
            case "client": client = scanner.string()
            case "clientPort":
                guard let number = scanner.number().flatMap(UInt16.init(exactly:)) else { return nil }
                clientPort = number
            case "sourcePort":
                guard let number = scanner.number().flatMap(UInt16.init(exactly:)) else { return nil }
                sourcePort = number
            case "home": home = scanner.string()
            case "host":
                guard let text = scanner.string() else { return nil }
                host = text
            case "datapath":
                guard let text = scanner.string() else { return nil }
                datapath = text
            case "transits": isPlain = scanner.skip(UInt8(ascii: "[")) && scanner.skip(UInt8(ascii: "]"))
            default: return nil
            }
        } while scanner.skip(UInt8(ascii: ","))
        guard scanner.skip(UInt8(ascii: "}")), scanner.isAtEnd, isPlain, let id, let client, let home else {
            return nil
        }
        self.id = id
        self.client = client
        self.clientPort = clientPort
        self.home = home
        self.host = host
        self.datapath = datapath
        self.sourcePort = sourcePort
        transits = []
    }
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
