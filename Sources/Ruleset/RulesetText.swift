// SPDX-License-Identifier: GPL-3.0-or-later

internal import Wire

// The spelling is that of `nft list table`, tabs included, so that a listing of the kernel's table can be compared
// line by line.

extension Ruleset {
    /// The table as `nft -f -` reads it.
    public func text() -> String { text(comment: comment) }

    func text(comment: String?) -> String {
        var blocks = sets.map { $0.text() } + chains.map { $0.text() }
        if let comment, let first = blocks.first { blocks[0] = "\tcomment \"\(comment)\"\n" + first }
        return "table inet \(tableName) {\n" + blocks.joined(separator: "\n") + "}\n"
    }
}

extension NamedSet {
    fileprivate func text() -> String {
        func concatenated(_ types: [DataType]) -> String { types.map(\.keyword).joined(separator: " . ") }
        let word: String
        var type = concatenated(key)
        switch value {
        case .none: word = "set"
        case .data(let types): (word, type) = ("map", type + " : " + concatenated(types))
        }
        var lines = ["\ttype \(type)"]
        if let size { lines.append("\tsize \(size)") }
        lines.append(isDynamic ? "\tflags dynamic,timeout" : "\tflags timeout")
        if let timeout { lines.append("\ttimeout " + (timeout < 3600 ? "\(timeout / 60)m" : "\(timeout / 86_400)d")) }
        return "\t\(word) \(name) {\n" + lines.map { "\t\($0)\n" }.joined() + "\t}\n"
    }
}

extension Chain {
    fileprivate func text() -> String {
        var lines = rules.map { $0.map { $0.text() }.joined(separator: " ") }
        if let hook { lines.insert(hook.text(), at: 0) }
        return "\tchain \(name.rawValue) {\n" + lines.map { "\t\t\($0)\n" }.joined() + "\t}\n"
    }
}

extension BaseHook {
    fileprivate func text() -> String {
        "type \(kind.rawValue) hook \(point) priority \(priorityText); policy accept;"
    }

    /// nft's names: raw is -300, mangle -150, dstnat -100, srcnat 100; up to 10 away from one it prints the distance.
    private var priorityText: String {
        for (name, value) in [("raw", -300), ("mangle", -150), ("dstnat", -100), ("srcnat", 100)] as [(String, Int32)] {
            switch priority - value {
            case 0: return name
            case let distance where (1...10).contains(distance): return "\(name) + \(distance)"
            case let distance where (-10...(-1)).contains(distance): return "\(name) - \(-distance)"
            default: continue
            }
        }
        return String(priority)
    }
}

extension PacketKey {
    fileprivate func text() -> String {
        let network = family == .ipv4 ? "ip" : "ip6"
        return fields.map { field in
            switch field {
            case .saddr, .daddr: "\(network) \(field.rawValue)"
            case .sport, .dport: "tcp \(field.rawValue)"
            }
        }.joined(separator: " . ")
    }
}

extension Statement {
    fileprivate func text() -> String {
        switch self {
        case .hasMark(let mark): "meta mark \(hexadecimal(mark))"
        case .hasMarkBits(let bits, let mask):
            // nft's own spelling of a mask of leading ones.
            mask == ~0 << mask.trailingZeroBitCount
                ? "meta mark \(hexadecimal(bits))/\(mask.nonzeroBitCount)"
                : "meta mark & \(hexadecimal(mask)) == \(hexadecimal(bits))"
        case .isTCP: "meta l4proto tcp"
        case .hasSYN: "tcp flags syn"
        case .isSYN: "tcp flags syn / fin,syn,rst,ack"
        case .isICMPError(let family):
            (family == .ipv4 ? "icmp" : "icmpv6") + " type { "
                + Self.icmpErrorTypes(family).map(\.keyword).joined(separator: ", ") + " }"
        case .isIn(let key, let set): "\(key.text()) @\(set)"
        case .update(let set, let key): "update @\(set) { \(key.text()) }"
        case .remember(let map, let key):
            "update @\(map) { \(key.text()) : meta mark & \(hexadecimal(MarkLayout.remembered)) }"
        case .forget(let map, let key): "delete @\(map) { \(key.text()) : meta mark }"
        case .recall(let key, let map): "meta mark set \(key.text()) map @\(map)"
        case .translateDestination(let key, let map):
            "dnat \(key.family == .ipv4 ? "ip" : "ip6") to \(key.text()) map @\(map)"
        case .translateSource(let family, let map):
            "meta l4proto tcp snat \(family == .ipv4 ? "ip" : "ip6") to "
                + ["saddr", "proto-src", "daddr", "proto-dst"].map { field in
                    field.hasSuffix("addr")
                        ? "ct original \(family == .ipv4 ? "ip" : "ip6") \(field)" : "ct original \(field)"
                }.joined(separator: " . ") + " map @\(map)"
        case .setField(let family, let field, let map):
            "\(PacketKey(family, [field]).text()) set meta mark & \(hexadecimal(MarkLayout.translation)) map @\(map)"
        case .setMark(let mark): "meta mark set \(hexadecimal(mark))"
        case .notrack: "notrack"
        case .goTo(let chain): "goto \(chain.rawValue)"
        case .accept: "accept"
        case .drop: "drop"
        case .queue(let first, let count):
            count == 1 ? "queue num \(first)" : "queue num \(first)-\(Int(first) + Int(count) - 1)"
        case .rejectWithTCPReset: "reject with tcp reset"
        }
    }

    /// Eight digits, as nft prints a mark.
    private func hexadecimal(_ value: UInt32) -> String {
        let digits = String(value, radix: 16)
        return "0x" + String(repeating: "0", count: 8 - digits.count) + digits
    }
}
