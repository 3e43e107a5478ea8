// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// Who writes the endpoints of a translated segment into the packet.
public enum Treatment: String, Hashable, Sendable, CaseIterable {
    /// The kernel, from a mark on the verdict. User space needs no more of a segment than its headers.
    case mark
    /// User space, which needs the whole packet and gives it back.
    case rewrite
}

/// What a translation writes, whatever the direction: the endpoint that takes the place of the host's or the home's, and the
/// client's port, 0 where that stays.
@frozen
public struct Translation: Hashable, Sendable {
    public var endpoint: Endpoint
    public var clientPort: UInt16

    @inlinable
    public init(endpoint: Endpoint, clientPort: UInt16) {
        self.endpoint = endpoint
        self.clientPort = clientPort
    }
}

extension FlowRule {
    /// The translation that packets under this rule get, if any.
    public var translation: Translation? {
        switch self {
        case .freeze, .awaitDecision: nil
        case .awaitSYN(let passage), .reconnected(let passage), .holdSYN(let passage), .passage(let passage):
            passage.translation
        }
    }
}

extension Passage {
    /// The translation that this passage makes, if any.
    public var translation: Translation? {
        switch self {
        case .pass: nil
        case .translateDestination(let endpoint, let port), .translateSource(let endpoint, let port):
            Translation(endpoint: endpoint, clientPort: port)
        }
    }
}

/// The marks by which the kernel knows translations. Open addressing with linear probing; nothing is removed, since a packet
/// under way may carry any mark that was given out. Memory is taken by `set` only.
@usableFromInline
internal struct TranslationMarks: ~Copyable {
    @usableFromInline
    struct Entry {
        @usableFromInline var high: UInt64 = 0
        @usableFromInline var low: UInt64 = 0
        /// Both ports, the family, and 1 for an entry that is taken.
        @usableFromInline var rest: UInt64 = 0
        @usableFromInline var mark: UInt32 = 0

        @usableFromInline
        init() {}

        @inlinable @inline(__always)
        init(_ translation: Translation) {
            let address = translation.endpoint.address
            (high, low) = address.numbers
            rest =
                UInt64(translation.endpoint.port) << 48 | UInt64(translation.clientPort) << 32
                | UInt64(address.family.rawValue) << 8 | 1
        }
    }

    @usableFromInline var entries: [Entry] = Array(repeating: Entry(), count: 16)
    private var count = 0

    @usableFromInline
    init() {}

    /// The mark of a translation; 0 when it has none.
    @inlinable @inline(__always)
    func mark(_ translation: Translation, seed: UInt64) -> UInt32 { entries[place(Entry(translation), seed)].mark }

    mutating func set(_ translation: Translation, mark: UInt32, seed: UInt64) {
        if (count + 1) * 2 > entries.count {
            let old = entries
            entries = Array(repeating: Entry(), count: old.count * 2)
            for entry in old where entry.rest != 0 { entries[place(entry, seed)] = entry }
        }
        var entry = Entry(translation)
        let index = place(entry, seed)
        if entries[index].rest == 0 { count += 1 }
        entry.mark = mark
        entries[index] = entry
    }

    /// Where the translation is, or the vacant place where it would go.
    @inlinable @inline(__always)
    func place(_ wanted: Entry, _ seed: UInt64) -> Int {
        let entries = entries.span
        let mask = entries.count - 1
        let first = EndpointKey.fold(wanted.low ^ seed, wanted.high ^ 0x9e37_79b9_7f4a_7c15)
        var index = Int(truncatingIfNeeded: EndpointKey.fold(first ^ wanted.rest, seed ^ 0xa076_1d64_78bd_642f)) & mask
        while entries[index].rest != 0 {
            let differs =
                (entries[index].high ^ wanted.high) | (entries[index].low ^ wanted.low)
                | (entries[index].rest ^ wanted.rest)
            if differs == 0 { break }
            index = (index &+ 1) & mask
        }
        return index
    }
}
