// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc
public import Wire

/// Why conntrack could not be read, changed or listened to. Its text is one sentence that says what to do.
public struct ConntrackError: Error, Hashable, Sendable {
    @frozen
    public enum Operation: String, Hashable, Sendable {
        case open = "opened"
        case list = "listed"
        case look = "looked up"
        case delete = "deleted from"
        case subscribe = "subscribed to"
        case receive = "listened to"
    }

    public var operation: Operation
    /// The connection that was looked for or to be deleted; nil when none in particular.
    public var tuple: FourTuple?
    /// The system's error number.
    public var errno: Int32

    public init(_ operation: Operation, tuple: FourTuple? = nil, errno: Int32) {
        self.operation = operation
        self.tuple = tuple
        self.errno = errno
    }

    /// Whether the process lacks the capability CAP_NET_ADMIN.
    public var isPermissionDenied: Bool { errno == EPERM || errno == EACCES }

    /// Whether this kernel lacks the feature: no netfilter netlink, no ctnetlink, or not this operation of it.
    public var isFeatureAbsent: Bool {
        switch errno {
        case EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT: true
        // "No such entry" is no error of the operations on entries.
        case ENOENT: operation == .subscribe || operation == .open
        default: false
        }
    }
}

extension ConntrackError: CustomStringConvertible {
    public var description: String {
        let subject = "Conntrack\(tuple.map { ", connection \($0)," } ?? "") cannot be \(operation.rawValue)"
        let reason = unsafe String(cString: strerror(errno))
        if isPermissionDenied { return "\(subject): run the daemon as root or grant it CAP_NET_ADMIN." }
        if isFeatureAbsent {
            return "\(subject) (\(reason)): load the kernel module nf_conntrack_netlink "
                + "or build it (CONFIG_NF_CT_NETLINK)."
        }
        switch errno {
        case EBUSY:
            return "\(subject) while a flowtable carries it: take this connection out of the flowtable."
        case EINTR:
            return "\(subject) because it kept changing meanwhile: try again."
        case EBADMSG:
            return "\(subject): the kernel's answer was not understood; please report it with the kernel's version."
        case ETIMEDOUT:
            return "\(subject): the kernel did not answer in time; try again."
        default:
            return "\(subject): \(reason)."
        }
    }
}
