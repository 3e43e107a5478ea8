// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc

/// Wakes a queue's thread, which waits for packets and for nothing else: by a netlink message to its socket that says
/// nothing. Waiting for two descriptors instead would cost a system call a batch.
///
/// It has a socket of its own, so that it may outlive the queue's. Unchecked: sending is all that is done with it.
@safe
struct QueueWaker: ~Copyable, @unchecked Sendable {
    private let socket: NetlinkSocket
    private let portNumber: UInt32

    /// For the thread that receives from the netlink socket with this port number, in the same network namespace.
    init(portNumber: UInt32) throws(NetlinkError) {
        socket = try NetlinkSocket()
        self.portNumber = portNumber
    }

    /// Makes the thread's wait end, now or when it next begins. From any thread.
    func wake() {
        var message = nlmsghdr()
        message.nlmsg_len = UInt32(MemoryLayout<nlmsghdr>.size)
        message.nlmsg_type = UInt16(NLMSG_NOOP)
        var address = sockaddr_nl()
        address.nl_family = sa_family_t(AF_NETLINK)
        address.nl_pid = portNumber
        for _ in 0..<1000 {
            let sent = unsafe withUnsafeBytes(of: &message) { octets in
                unsafe withUnsafePointer(to: &address) { pointer in
                    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                        unsafe sendto(
                            socket.fileDescriptor, octets.baseAddress, octets.count, Int32(MSG_DONTWAIT),
                            address, socklen_t(MemoryLayout<sockaddr_nl>.size))
                    }
                }
            }
            // A full buffer (EAGAIN) means that the thread has packets to come back from; a refusal, that it is gone.
            if sent >= 0 || errno == EAGAIN || errno == ECONNREFUSED { return }
            if errno != EINTR { usleep(1000) }
        }
    }
}
