// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc

/// A request to the kernel's netfilter that failed: what was tried, and the kernel's answer.
public struct NetlinkError: Error, Hashable, Sendable, CustomStringConvertible {
    /// What was tried.
    public enum Operation: Hashable, Sendable {
        /// Open and bind a netlink socket of family NETLINK_NETFILTER.
        case openSocket
        /// Bind the packet queue of this number (NFQNL_CFG_CMD_BIND).
        case bindQueue(UInt16)
        /// Set length, copy mode and flags of a bound packet queue.
        case configureQueue(UInt16)
        /// Start the thread of a packet queue.
        case startThread(UInt16)
        /// Make the eventfd(2) that one thread wakes another with.
        case makeEventDescriptor
        /// Create our nftables table.
        case createTable
        /// Change sets and maps of our nftables table.
        case changeTable
        /// Read our nftables table, or find out that there is none.
        case readTable
        /// Delete our nftables table.
        case deleteTable
    }

    public var operation: Operation
    /// The kernel's error number (errno(3)), positive. ETIMEDOUT: the kernel did not answer in time.
    public var errno: Int32

    public init(operation: Operation, errno: Int32) {
        self.operation = operation
        self.errno = errno
    }

    public var description: String { "Cannot \(operation.text): \(reason)." }

    /// The rest of the sentence: the cause, and what the reader can do.
    private var reason: String {
        switch (operation, errno) {
        case (_, EPERM), (_, EACCES):
            "the process lacks the capability CAP_NET_ADMIN in this network namespace"
        case (.bindQueue, EBUSY):
            "the queue is taken by another process; stop that process or configure other queue numbers"
        case (.bindQueue, EINVAL), (.bindQueue, ENOENT), (.bindQueue, EOPNOTSUPP):
            // nfnetlink_rcv_msg answers EINVAL for a subsystem that is not there.
            "the kernel lacks packet queues (CONFIG_NETFILTER_NETLINK_QUEUE, module nfnetlink_queue)"
        case (.configureQueue, EOPNOTSUPP):
            "the kernel's packet queues lack a flag that is needed (NFQA_CFG_F_GSO, Linux 3.10)"
        case (.openSocket, EPROTONOSUPPORT), (.openSocket, EOPNOTSUPP), (.openSocket, ENOENT):
            "the kernel lacks netfilter's netlink interface (CONFIG_NETFILTER_NETLINK, module nfnetlink)"
        case (.createTable, ENOENT), (.createTable, EOPNOTSUPP), (.createTable, EPROTONOSUPPORT):
            "the kernel lacks a feature of nf_tables that the table needs "
                + "(CONFIG_NF_TABLES_INET, NFT_NAT, NFT_REJECT_INET, and NFT_QUEUE or NETFILTER_XT_TARGET_NFQUEUE)"
        case (.changeTable, ENOENT), (.readTable, ENOENT), (.deleteTable, ENOENT):
            "the table, or a set or element in it, is not there; was it changed by another program?"
        case (_, ETIMEDOUT):
            "the kernel did not answer within 5 seconds"
        case (_, let number):
            unsafe String(cString: strerror(number))
        }
    }
}

extension NetlinkError.Operation {
    /// What was tried, in words that follow "Cannot".
    fileprivate var text: String {
        switch self {
        case .openSocket: "open a netlink socket"
        case .bindQueue(let queue): "bind packet queue \(queue)"
        case .configureQueue(let queue): "configure packet queue \(queue)"
        case .startThread(let queue): "start the thread of packet queue \(queue)"
        case .makeEventDescriptor: "make an event descriptor"
        case .createTable: "create the nftables table"
        case .changeTable: "change the nftables table"
        case .readTable: "read the nftables table"
        case .deleteTable: "delete the nftables table"
        }
    }
}
