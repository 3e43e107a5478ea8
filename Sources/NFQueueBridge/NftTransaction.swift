// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc

extension NetlinkSocket {
    /// The kernel's answer to one message of a transaction.
    struct Answer {
        let sequence: UInt32
        /// 0 acknowledges.
        let errno: Int32
    }

    /// What the kernel has said to a transaction.
    struct Outcome {
        var answers: [Answer] = []
        /// The generation that the transaction has made, when its first message asks for it (NLM_F_ECHO); nil when it has
        /// changed nothing.
        var generation: UInt32?
    }

    /// Lets answers be short (NETLINK_CAP_ACK: the refused message is not quoted) and many.
    func prepareForTransactions() {
        setTransactionOption(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        // A limit, not a reservation: room for the answers to some 50,000 refused messages.
        setTransactionOption(SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    }

    /// Sends the messages of one transaction in one datagram and collects every answer. The kernel has answered when
    /// the sending returns (netlink_sendmsg calls nfnetlink_rcv), so nothing is waited for.
    func transact(
        _ messages: UnsafeRawBufferPointer, for operation: NetlinkError.Operation
    ) throws(NetlinkError) -> Outcome {
        // A datagram must be shorter than the socket's send buffer (netlink_sendmsg: EMSGSIZE).
        setTransactionOption(SOL_SOCKET, SO_SNDBUFFORCE, Int32(clamping: messages.count + 65_536))
        try unsafe send(messages, for: operation)

        var outcome = Outcome()
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 32_768, alignment: 16)
        defer { unsafe buffer.deallocate() }
        while true {
            let length = unsafe recv(fileDescriptor, buffer.baseAddress, buffer.count, Int32(MSG_DONTWAIT))
            if length < 0 {
                switch errno {
                case EAGAIN: return outcome
                // ENOBUFS: answers have been lost; what has arrived tells.
                case EINTR, ENOBUFS: continue
                case let number: throw NetlinkError(operation: operation, errno: number)
                }
            }
            var remaining = Int32(length)
            var message = unsafe UnsafeRawPointer(buffer.baseAddress)?.assumingMemoryBound(to: nlmsghdr.self)
            while let current = unsafe message, unsafe mnl_nlmsg_ok(current, remaining) {
                if let number = unsafe Self.errorNumber(of: current) {
                    outcome.answers.append(Answer(sequence: unsafe current.pointee.nlmsg_seq, errno: number))
                } else if let generation = unsafe Self.generation(in: current) {
                    outcome.generation = generation
                }
                unsafe message = UnsafePointer(mnl_nlmsg_next(current, &remaining))
            }
        }
    }

    /// The generation in a message of type NFT_MSG_NEWGEN, nil for any other message.
    static func generation(in message: UnsafePointer<nlmsghdr>) -> UInt32? {
        guard unsafe Int32(message.pointee.nlmsg_type) == NFNL_SUBSYS_NFTABLES << 8 | Int32(NFT_MSG_NEWGEN.rawValue)
        else { return nil }
        let headers = MemoryLayout<nlmsghdr>.size + MemoryLayout<nfgenmsg>.size
        let octets = unsafe UnsafeRawBufferPointer(start: message, count: Int(message.pointee.nlmsg_len))
        var offset = headers
        while offset + 4 <= octets.count {
            let length = unsafe Int(octets.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
            let type = unsafe octets.loadUnaligned(fromByteOffset: offset + 2, as: UInt16.self)
            guard length >= 4, offset + length <= octets.count else { return nil }
            if type == UInt16(NFTA_GEN_ID.rawValue), length >= 8 {
                return unsafe UInt32(bigEndian: octets.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self))
            }
            offset += (length + 3) & ~3
        }
        return nil
    }

    private func setTransactionOption(_ level: Int32, _ option: Int32, _ value: Int32) {
        // Without the capability this fails, and so does the transaction, which reports it.
        _ = unsafe withUnsafePointer(to: value) { value in
            unsafe setsockopt(fileDescriptor, level, option, value, socklen_t(MemoryLayout<Int32>.size))
        }
    }
}
