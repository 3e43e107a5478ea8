// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter

/// Messages for nf_tables in one buffer, which the kernel carries out as one transaction: all or nothing
/// (nfnetlink_rcv_batch). They are numbered from `firstSequence`.
@safe
struct NftBatch: ~Copyable {
    /// The most octets that one message of ours takes. A rule has less than 2 KiB, an element less than 256 octets;
    /// libnftnl does not check.
    private static let headroom = 16_384

    private var octets: UnsafeMutableRawPointer
    private var capacity: Int
    private(set) var count = 0
    let firstSequence: UInt32
    /// Messages so far, the beginning of the transaction included.
    private(set) var messageCount: UInt32 = 0
    /// Where the first message behind the beginning starts, and where the last one but the end.
    private var firstStart = 0
    private var lastStart = 0

    /// An empty transaction.
    init(firstSequence: UInt32) {
        self.firstSequence = firstSequence
        capacity = 4 * Self.headroom
        unsafe octets = .allocate(byteCount: capacity, alignment: 8)
        unsafe append { unsafe nftnl_batch_begin($0, $1) }
        firstStart = count
    }

    deinit { unsafe octets.deallocate() }

    /// The sequence number of the message that is added next.
    var nextSequence: UInt32 { firstSequence &+ messageCount }

    /// Adds a message of type NFT_MSG_… for family inet; `write` puts its attributes.
    mutating func append(
        _ type: nf_tables_msg_types, flags: Int32 = 0, write: (UnsafeMutablePointer<nlmsghdr>) -> Void
    ) {
        lastStart = count
        unsafe append { start, sequence in
            let message = unsafe nftnl_nlmsg_build_hdr(
                start, UInt16(type.rawValue), UInt16(NFPROTO_INET), UInt16(NLM_F_REQUEST | flags), sequence)
            if let message = unsafe message { unsafe write(message) }
            return unsafe message
        }
    }

    /// Ends the transaction. The kernel acknowledges the last message; failures it reports anyway. When it has changed
    /// something, it tells the generation that this has made: to whoever has the first message echoed
    /// (nf_tables_gen_notify).
    ///
    /// - Returns: that message's sequence number.
    mutating func end() -> UInt32 {
        let last = nextSequence &- 1
        unsafe octets.advanced(by: lastStart).assumingMemoryBound(to: nlmsghdr.self).pointee.nlmsg_flags |=
            UInt16(NLM_F_ACK)
        unsafe octets.advanced(by: firstStart).assumingMemoryBound(to: nlmsghdr.self).pointee.nlmsg_flags |=
            UInt16(NLM_F_ECHO)
        unsafe append { unsafe nftnl_batch_end($0, $1) }
        return last
    }

    /// Calls `body` with all messages.
    func withOctets<Result, Failure>(
        _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        try unsafe body(UnsafeRawBufferPointer(start: octets, count: count))
    }

    private mutating func append(
        _ build: (UnsafeMutablePointer<CChar>, UInt32) -> UnsafeMutablePointer<nlmsghdr>?
    ) {
        if capacity - count < Self.headroom {
            let larger = UnsafeMutableRawPointer.allocate(byteCount: 2 * capacity, alignment: 8)
            unsafe larger.copyMemory(from: octets, byteCount: count)
            unsafe octets.deallocate()
            unsafe octets = larger
            capacity *= 2
        }
        let start = unsafe octets.advanced(by: count).assumingMemoryBound(to: CChar.self)
        guard let message = unsafe build(start, nextSequence) else { return }
        // Every message starts at a multiple of 4 (NLMSG_ALIGN).
        count += unsafe Int(message.pointee.nlmsg_len + 3) & ~3
        messageCount += 1
    }
}
