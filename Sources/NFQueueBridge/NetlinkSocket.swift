// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc

/// A netlink socket of family NETLINK_NETFILTER with a port number of the kernel's choice; closed with its owner.
@safe
struct NetlinkSocket: ~Copyable {
    /// How long the kernel may take for an answer, in milliseconds.
    static let timeout: Int32 = 5000

    private let handle: OpaquePointer

    /// Throws `NetlinkError` with operation `.openSocket`.
    init() throws(NetlinkError) {
        guard let socket = unsafe mnl_socket_open2(NETLINK_NETFILTER, Int32(SOCK_CLOEXEC.rawValue)) else {
            throw NetlinkError(operation: .openSocket, errno: errno)
        }
        guard unsafe mnl_socket_bind(socket, 0, 0) >= 0 else {
            let number = errno
            unsafe mnl_socket_close(socket)
            throw NetlinkError(operation: .openSocket, errno: number)
        }
        unsafe handle = socket
    }

    deinit { unsafe mnl_socket_close(handle) }

    var fileDescriptor: Int32 { unsafe mnl_socket_get_fd(handle) }

    /// The socket's netlink port number (nlmsg_pid of what the kernel sends to it).
    var portNumber: UInt32 { unsafe mnl_socket_get_portid(handle) }

    /// Sends `messages` (one or more whole netlink messages, host byte order headers) to the kernel in one datagram.
    /// The kernel has acted on them when this returns; its answers wait in the socket.
    func send(_ messages: UnsafeRawBufferPointer, for operation: NetlinkError.Operation) throws(NetlinkError) {
        guard let start = messages.baseAddress else { return }
        while unsafe mnl_socket_sendto(handle, start, messages.count) < 0 {
            if errno != EINTR { throw NetlinkError(operation: operation, errno: errno) }
        }
    }

    /// Receives one datagram into `buffer` and returns its length; waits up to 5 s, then throws ETIMEDOUT. A datagram
    /// longer than `buffer` throws EMSGSIZE; MNL_SOCKET_DUMP_SIZE (32768) octets hold any answer of a dump.
    func receive(
        into buffer: UnsafeMutableRawBufferPointer, for operation: NetlinkError.Operation
    ) throws(NetlinkError) -> Int {
        while true {
            var wait = pollfd(fd: fileDescriptor, events: Int16(POLLIN), revents: 0)
            let ready = unsafe poll(&wait, 1, Self.timeout)
            if ready == 0 { throw NetlinkError(operation: operation, errno: ETIMEDOUT) }
            if ready > 0 {
                let length = unsafe mnl_socket_recvfrom(handle, buffer.baseAddress, buffer.count)
                if length >= 0 { return length }
                // mnl_socket_recvfrom reports a datagram that did not fit as ENOSPC.
                if errno == ENOSPC { throw NetlinkError(operation: operation, errno: EMSGSIZE) }
            }
            if errno != EINTR && errno != EAGAIN { throw NetlinkError(operation: operation, errno: errno) }
        }
    }

    /// Receives datagrams and calls `body` for each message in them until it returns true, up to 5 s for each datagram.
    /// `body` sees every message, NLMSG_ERROR and NLMSG_DONE too; the pointer is good for the call only. What follows the
    /// last message in its datagram is discarded.
    func receiveMessages(
        for operation: NetlinkError.Operation,
        until body: (UnsafePointer<nlmsghdr>) throws(NetlinkError) -> Bool
    ) throws(NetlinkError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 32768, alignment: 16)
        defer { unsafe buffer.deallocate() }
        while true {
            var remaining = Int32(try unsafe receive(into: buffer, for: operation))
            var message = unsafe UnsafeRawPointer(buffer.baseAddress)?.assumingMemoryBound(to: nlmsghdr.self)
            while let current = unsafe message, unsafe mnl_nlmsg_ok(current, remaining) {
                if try unsafe body(current) { return }
                unsafe message = UnsafePointer(mnl_nlmsg_next(current, &remaining))
            }
        }
    }

    /// Waits for the kernel's acknowledgement of the message with this sequence number (its nlmsg_seq, with NLM_F_ACK
    /// set) and throws the error in it. Answers to other messages are skipped.
    func awaitAcknowledgement(
        of sequence: UInt32, for operation: NetlinkError.Operation
    ) throws(NetlinkError) {
        try unsafe receiveMessages(for: operation) { (message) throws(NetlinkError) -> Bool in
            guard unsafe message.pointee.nlmsg_seq == sequence, let number = unsafe Self.errorNumber(of: message) else {
                return false
            }
            if number != 0 { throw NetlinkError(operation: operation, errno: number) }
            return true
        }
    }

    /// The error number in an NLMSG_ERROR message (positive; 0 acknowledges), nil for any other message.
    static func errorNumber(of message: UnsafePointer<nlmsghdr>) -> Int32? {
        guard unsafe Int32(message.pointee.nlmsg_type) == NLMSG_ERROR,
            unsafe Int(message.pointee.nlmsg_len) >= MemoryLayout<nlmsghdr>.size + MemoryLayout<Int32>.size
        else { return nil }
        let number = unsafe UnsafeRawPointer(message).load(fromByteOffset: MemoryLayout<nlmsghdr>.size, as: Int32.self)
        // Wrapping: the least Int32 is no error number, but must not trap either.
        return 0 &- number
    }

    /// Sends one message and waits for its acknowledgement. `message` must have NLM_F_ACK and this sequence number.
    func request(
        _ message: UnsafeRawBufferPointer, sequence: UInt32, for operation: NetlinkError.Operation
    ) throws(NetlinkError) {
        try unsafe send(message, for: operation)
        try awaitAcknowledgement(of: sequence, for: operation)
    }
}
