// SPDX-License-Identifier: GPL-3.0-or-later

/// What an operator chooses about our table: everything else in it is the same on every gateway.
public struct RulesetOptions: Hashable, Sendable {
    /// The table's name in family `inet`: a letter, then letters, digits, `_`, `.`, `/` or `-`.
    public let tableName: String
    /// The fwmark of our own segments; packets that come back from a queue carry it with more bits set (`MarkLayout`).
    public let mark: UInt32
    /// The first NFQUEUE number.
    public let firstQueue: UInt16
    /// How many queues, numbered from `firstQueue`, share the packets by address hash.
    public let queueCount: UInt16
    /// Whether the kernel carries on by itself what user space has judged once. It needs treatment `mark`.
    public let carries: Bool

    /// Mark and queue numbers come from a configuration that has been checked.
    ///
    /// - Precondition: `mark` is not 0 (every unmarked packet has mark 0) and has no bit outside `MarkLayout.tag`,
    ///   `queueCount` is at least 1, the last queue number is at most 65535, and `tableName` is a name that nft takes.
    public init(
        mark: UInt32, firstQueue: UInt16, queueCount: UInt16, carries: Bool = true, tableName: String = "nfqmigd"
    ) {
        precondition(mark != 0, "mark 0 is the mark of every packet")
        precondition(mark & ~MarkLayout.tag == 0, "the low bits of the mark are the translation's")
        precondition(queueCount >= 1 && Int(firstQueue) + Int(queueCount) <= 65_536, "queue numbers end at 65535")
        precondition(Self.isName(tableName), "not a table name: \(tableName)")
        self.tableName = tableName
        self.mark = mark
        self.firstQueue = firstQueue
        self.queueCount = queueCount
        self.carries = carries
    }

    /// Whether nft reads `text` as one name: its scanner's `string`, a letter and then letters, digits, `/ \ _ .` or
    /// `-` (we leave out the backslash); the kernel's limit is 255 octets (NFT_TABLE_MAXNAMELEN without the zero).
    static func isName(_ text: String) -> Bool {
        func isLetter(_ octet: UInt8) -> Bool { (0x61...0x7a).contains(octet | 0x20) }
        guard let first = text.utf8.first, isLetter(first), text.utf8.count <= 255 else { return false }
        return text.utf8.allSatisfy { isLetter($0) || (0x30...0x39).contains($0) || "_./-".utf8.contains($0) }
    }
}
