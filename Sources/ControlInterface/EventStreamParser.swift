// SPDX-License-Identifier: GPL-3.0-or-later

public import Foundation

/// Takes a stream of server-sent events apart (WHATWG HTML, section 9.2.6), in pieces of any size.
public struct EventStreamParser: Sendable {
    /// One block: what stands between two empty lines.
    public struct Block: Hashable, Sendable {
        /// The `id` field, if there was one that is a number.
        public var id: UInt64?
        /// The `event` field; `message` without one.
        public var type = "message"
        /// The `data` fields, joined by line ends; empty when nothing is to be dispatched.
        public var data = Data()
    }

    private var line: [UInt8] = []
    private var block = Block()
    private var isEmpty = true
    private var hasData = false
    private var followsCarriageReturn = false

    public init() {}

    /// The blocks that these octets complete.
    public mutating func parse(_ octets: some Sequence<UInt8>) -> [Block] {
        var blocks: [Block] = []
        for octet in octets {
            let isSecondOfPair = followsCarriageReturn && octet == UInt8(ascii: "\n")
            followsCarriageReturn = octet == UInt8(ascii: "\r")
            if isSecondOfPair { continue }
            guard octet == UInt8(ascii: "\n") || octet == UInt8(ascii: "\r") else {
                line.append(octet)
                continue
            }
            if line.isEmpty {
                if !isEmpty { blocks.append(block) }
                (block, isEmpty, hasData) = (Block(), true, false)
            } else {
                take()
                line.removeAll(keepingCapacity: true)
            }
        }
        return blocks
    }

    private mutating func take() {
        let parts = line.split(separator: UInt8(ascii: ":"), maxSplits: 1, omittingEmptySubsequences: false)
        var value = parts.count == 2 ? parts[1] : []
        if value.first == UInt8(ascii: " ") { value = value.dropFirst() }
        switch String(decoding: parts[0], as: UTF8.self) {
        case "id":
            block.id = UInt64(String(decoding: value, as: UTF8.self))
            isEmpty = false
        case "event":
            block.type = String(decoding: value, as: UTF8.self)
            isEmpty = false
        case "data":
            if hasData { block.data.append(UInt8(ascii: "\n")) }
            block.data.append(contentsOf: value)
            (hasData, isEmpty) = (true, false)
        default: break  // A comment, or a field that nobody knows.
        }
    }
}
