// SPDX-License-Identifier: GPL-3.0-or-later

internal import Migration

/// Writes one JSON object: what the journal takes several times in each migration. `JSONEncoder`, which takes thirty times as
/// long, writes all other documents.
struct DocumentWriter {
    private var octets: [UInt8] = []
    /// Whether the next value is the first of its object or list.
    private var isFirst = true

    /// The text of an object whose members `body` puts.
    static func text(_ body: (inout DocumentWriter) -> Void) -> String {
        var writer = DocumentWriter()
        writer.octets.reserveCapacity(1024)
        writer.enclose("{", "}", body)
        return String(decoding: writer.octets, as: UTF8.self)
    }

    /// A member; none when the value is nil.
    mutating func put(_ name: String, _ value: String?) {
        guard let value else { return }
        put(name)
        put(text: value)
    }

    mutating func put(_ name: String, _ value: (some BinaryInteger)?) {
        guard let value else { return }
        put(name)
        put(number: UInt64(value))
    }

    mutating func put(_ name: String, _ value: Bool?) {
        guard let value else { return }
        put(name)
        octets.append(contentsOf: (value ? "true" : "false").utf8)
    }

    mutating func put(_ name: String, _ body: (inout DocumentWriter) -> Void) {
        put(name)
        enclose("{", "}", body)
    }

    mutating func put<Element>(
        _ name: String, list: [Element], _ body: (inout DocumentWriter, Element) -> Void
    ) {
        put(name)
        enclose("[", "]") { writer in
            for element in list {
                writer.separate()
                writer.enclose("{", "}") { body(&$0, element) }
            }
        }
    }

    mutating func put(_ name: String, _ list: [String]) {
        put(name)
        enclose("[", "]") { writer in
            for text in list {
                writer.separate()
                writer.put(text: text)
            }
        }
    }

    private mutating func put(_ name: String) {
        separate()
        put(text: name)
        octets.append(UInt8(ascii: ":"))
    }

    private mutating func separate() {
        if !isFirst { octets.append(UInt8(ascii: ",")) }
        isFirst = false
    }

    private mutating func enclose(
        _ open: Unicode.Scalar, _ close: Unicode.Scalar, _ body: (inout DocumentWriter) -> Void
    ) {
        octets.append(UInt8(ascii: open))
        isFirst = true
        body(&self)
        isFirst = false
        octets.append(UInt8(ascii: close))
    }

    /// RFC 8259 section 7.
    private mutating func put(text: String) {
        octets.append(UInt8(ascii: "\""))
        defer { octets.append(UInt8(ascii: "\"")) }
        var text = text
        let isPlain = text.withUTF8 { text in
            let isPlain = unsafe !text.contains {
                $0 < 0x20 || $0 == UInt8(ascii: "\"") || $0 == UInt8(ascii: "\\")
            }
            if isPlain { unsafe octets.append(contentsOf: text) }
            return isPlain
        }
        if isPlain { return }
        for octet in text.utf8 {
            switch octet {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"):
                octets.append(UInt8(ascii: "\\"))
                octets.append(octet)
            case 0..<0x20:
                octets.append(contentsOf: (octet < 0x10 ? "\\u000" : "\\u00").utf8)
                octets.append(contentsOf: String(octet, radix: 16).utf8)
            default: octets.append(octet)
            }
        }
    }

    private mutating func put(number: UInt64) {
        let start = octets.count
        var rest = number
        repeat {
            octets.append(UInt8(ascii: "0") + UInt8(rest % 10))
            rest /= 10
        } while rest > 0
        octets[start...].reverse()
    }
}

extension SessionDocument {
    /// The document as JSON.
    package var text: String { DocumentWriter.text { put(into: &$0) } }

    fileprivate func put(into writer: inout DocumentWriter) {
        writer.put("id", id)
        writer.put("client", client)
        writer.put("clientPort", clientPort)
        writer.put("home", home)
        writer.put("host", host)
        writer.put("datapath", datapath)
        writer.put("sourcePort", sourcePort)
        writer.put("yields", yields)
        writer.put("transits", list: transits) { writer, transit in
            writer.put("source", transit.source)
            writer.put("destination", transit.destination)
            writer.put("transit", transit.transit)
            writer.put("host", transit.host)
            writer.put("lifetime", transit.lifetime)
            writer.put("migration", transit.migration)
            writer.put("sourcePort", transit.sourcePort)
        }
    }
}

extension JournaledMigration {
    /// The document as JSON.
    package var text: String {
        DocumentWriter.text { writer in
            writer.put("id", id)
            writer.put("stage", stage.rawValue)
            writer.put("before") { before.put(into: &$0) }
            writer.put("to", to)
            writer.put("datapath", datapath)
            writer.put("passive", passive)
            writer.put("fromHost", fromHost)
            writer.put("connections", list: connections) { writer, connection in
                writer.put("clientSide", connection.clientSide)
                writer.put("serverSide", connection.serverSide)
                writer.put("phase", connection.phase.rawValue)
                writer.put("probePort", connection.probePort)
            }
            guard let member else { return }
            writer.put("member") {
                $0.put("drain", member.drain)
                $0.put("place", member.place)
                $0.put("host", member.host)
                $0.put("isReturning", member.isReturning)
            }
        }
    }
}

extension JournaledTurn {
    /// The document as JSON.
    package var text: String {
        DocumentWriter.text { writer in
            writer.put("drain", drain)
            writer.put("place", place)
            writer.put("host", host)
            writer.put("result") { writer in
                switch result {
                case .moved(let isProven): writer.put("moved") { $0.put("isProven", isProven) }
                case .gone: writer.put("gone") { _ in }
                case .failed(let reason): writer.put("failed") { $0.put("reason", reason) }
                }
            }
            writer.put("session", session)
            writer.put("isAwaited", isAwaited)
            writer.put("isBack", isBack)
        }
    }
}
