// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc

/// A netlink socket of the netfilter family, by libmnl, with its receive buffer.
@safe struct NetfilterSocket: ~Copyable {
    private let handle: OpaquePointer
    private let buffer: UnsafeMutableRawBufferPointer

    /// - Parameter groups: multicast groups as a bit mask, bit n - 1 for group n.
    init(groups: UInt32, bufferSize: Int) throws(ConntrackError) {
        guard let handle = unsafe mnl_socket_open2(NETLINK_NETFILTER, Int32(SOCK_CLOEXEC.rawValue)) else {
            throw ConntrackError(.open, errno: errno)
        }
        guard unsafe mnl_socket_bind(handle, groups, MNL_SOCKET_AUTOPID) == 0 else {
            let number = errno
            unsafe mnl_socket_close(handle)
            throw ConntrackError(groups == 0 ? .open : .subscribe, errno: number)
        }
        unsafe self.handle = handle
        unsafe buffer = .allocate(byteCount: bufferSize, alignment: 8)
    }

    deinit {
        unsafe mnl_socket_close(handle)
        unsafe buffer.deallocate()
    }

    var fileDescriptor: Int32 { unsafe mnl_socket_get_fd(handle) }
    /// The port number by which the kernel addresses this socket.
    var port: UInt32 { unsafe mnl_socket_get_portid(handle) }

    func setOption(_ level: Int32, _ name: Int32, _ value: Int32) -> Bool {
        var value = value
        return unsafe setsockopt(fileDescriptor, level, name, &value, socklen_t(MemoryLayout<Int32>.size)) == 0
    }

    /// Limits the wait for an answer, so that a fault cannot stop the caller for ever.
    func setReceiveTimeout(seconds: Int) {
        var time = timeval(tv_sec: seconds, tv_usec: 0)
        _ = unsafe setsockopt(
            fileDescriptor, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    /// Returns 0 or an error number.
    func send(_ message: [UInt8]) -> Int32 {
        let sent = unsafe message.withUnsafeBytes { unsafe mnl_socket_sendto(handle, $0.baseAddress, $0.count) }
        return sent == message.count ? 0 : errno
    }

    /// Receives once and hands over each message of the datagram: its type, flags, sequence number, and what follows
    /// the netlink header.
    ///
    /// - Returns: 0, or an error number: EAGAIN when nothing is there (or came in time), ENOBUFS when messages were
    ///   lost.
    func receive(_ body: (_ header: Header, _ rest: Span<UInt8>) -> Void) -> Int32 {
        let count = unsafe mnl_socket_recvfrom(handle, buffer.baseAddress, buffer.count)
        guard count >= 0 else { return errno }
        let octets = unsafe Span<UInt8>(_unsafeBytes: UnsafeRawBufferPointer(rebasing: buffer[0..<count]))
        var offset = 0
        while octets.count - offset >= 16 {
            let length = Int(octets.hostInteger32(at: offset))
            guard length >= 16, length <= octets.count - offset else { return EBADMSG }
            let header = Header(
                type: octets.hostInteger16(at: offset + 4), flags: octets.hostInteger16(at: offset + 6),
                sequence: octets.hostInteger32(at: offset + 8))
            body(header, octets.extracting(offset + 16..<offset + length))
            offset += (length + 3) & ~3
        }
        return 0
    }

    /// What of struct nlmsghdr matters.
    struct Header {
        var type: UInt16
        var flags: UInt16
        var sequence: UInt32
    }
}
