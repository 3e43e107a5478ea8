// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import CNetfilter
internal import Glibc

extension NetlinkSocket {
    /// Sets a socket option; false when the kernel refuses.
    func setOption(_ level: Int32, _ option: Int32, _ value: Int32) -> Bool {
        var value = value
        return unsafe setsockopt(fileDescriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size)) == 0
    }

    /// Sets the socket's buffers, past the system's limits where that is allowed (CAP_NET_ADMIN), and says what is
    /// missing.
    func setBuffers(of queue: UInt16, receive: Int32, send: Int32) -> QueueBufferShortfall? {
        if !setOption(SOL_SOCKET, SO_RCVBUFFORCE, receive) { _ = setOption(SOL_SOCKET, SO_RCVBUF, receive) }
        if !setOption(SOL_SOCKET, SO_SNDBUFFORCE, send) { _ = setOption(SOL_SOCKET, SO_SNDBUF, send) }
        // The kernel doubles what is asked for, to pay for its own overhead, and reports the double.
        let granted = (receive: bufferSize(SO_RCVBUF) / 2, send: bufferSize(SO_SNDBUF) / 2)
        if granted.receive >= receive && granted.send >= send { return nil }
        return QueueBufferShortfall(queue: queue, receive: granted.receive, send: granted.send)
    }

    private func bufferSize(_ option: Int32) -> Int32 {
        var size: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        _ = unsafe getsockopt(fileDescriptor, SOL_SOCKET, option, &size, &length)
        return size
    }

    /// Binds packet queue `queue` to this socket: the first `copyRange` octets of each packet, packets of several segments uncut (NFQA_CFG_F_GSO), and
    /// no NFQA_CFG_F_FAIL_OPEN, since a packet that passes unseen when the queue is full would betray the migration.
    func bind(queue: UInt16, maximumLength: UInt32, copyRange: UInt16) throws(NetlinkError) {
        let sequence: UInt32 = 1
        let storage = UnsafeMutableRawBufferPointer.allocate(byteCount: 512, alignment: 16)
        defer { unsafe storage.deallocate() }
        guard let message = unsafe mnl_nlmsg_put_header(storage.baseAddress) else { return }
        unsafe message.pointee.nlmsg_type = UInt16(NFNL_SUBSYS_QUEUE) << 8 | UInt16(NFQNL_MSG_CONFIG.rawValue)
        unsafe message.pointee.nlmsg_flags = UInt16(NLM_F_REQUEST | NLM_F_ACK)
        unsafe message.pointee.nlmsg_seq = sequence
        let family = unsafe mnl_nlmsg_put_extra_header(message, MemoryLayout<nfgenmsg>.size)
        unsafe family?.storeBytes(
            of: nfgenmsg(nfgen_family: UInt8(AF_UNSPEC), version: UInt8(NFNETLINK_V0), res_id: queue.bigEndian),
            as: nfgenmsg.self)

        var command = nfqnl_msg_config_cmd()
        command.command = UInt8(NFQNL_CFG_CMD_BIND.rawValue)
        unsafe mnl_attr_put(
            message, UInt16(NFQA_CFG_CMD.rawValue), MemoryLayout.size(ofValue: command), &command)
        var parameters = nfqnl_msg_config_params()
        parameters.copy_range = UInt32(copyRange).bigEndian
        parameters.copy_mode = UInt8(NFQNL_COPY_PACKET.rawValue)
        unsafe mnl_attr_put(
            message, UInt16(NFQA_CFG_PARAMS.rawValue), MemoryLayout.size(ofValue: parameters), &parameters)
        unsafe mnl_attr_put_u32(message, UInt16(NFQA_CFG_QUEUE_MAXLEN.rawValue), maximumLength.bigEndian)
        let flags = UInt32(NFQA_CFG_F_GSO).bigEndian
        unsafe mnl_attr_put_u32(message, UInt16(NFQA_CFG_FLAGS.rawValue), flags)
        unsafe mnl_attr_put_u32(message, UInt16(NFQA_CFG_MASK.rawValue), flags)

        let length = unsafe Int(message.pointee.nlmsg_len)
        do {
            try unsafe request(
                UnsafeRawBufferPointer(start: message, count: length), sequence: sequence, for: .bindQueue(queue))
        } catch {
            throw Self.explained(error, queue: queue)
        }
    }

    /// nfqnl_recv_config answers EPERM both to the unprivileged and for a queue that another socket holds, and
    /// EOPNOTSUPP only for flags that it does not know.
    private static func explained(_ error: NetlinkError, queue: UInt16) -> NetlinkError {
        switch error.errno {
        case EPERM where nfqmig_has_capability(netAdministration) == 1:
            NetlinkError(operation: .bindQueue(queue), errno: EBUSY)
        case EOPNOTSUPP:
            NetlinkError(operation: .configureQueue(queue), errno: EOPNOTSUPP)
        default:
            error
        }
    }

    /// CAP_NET_ADMIN of linux/capability.h.
    private static let netAdministration: UInt32 = 12
}
