// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc
public import Wire

/// Why a spoofed segment was not sent. Its text is one sentence that says what to do.
public struct SpoofError: Error, Hashable, Sendable {
    @frozen
    public enum Operation: Hashable, Sendable {
        /// Opening the raw socket of a family.
        case open(AddressFamily)
        /// Setting the mark (SO_MARK) or a buffer of the raw socket.
        case configure(AddressFamily)
        /// Handing a segment to the kernel.
        case send
    }

    public var operation: Operation
    /// The segment's source and destination; nil when no segment was concerned.
    public var tuple: FourTuple?
    /// The system's error number.
    public var errno: Int32

    public init(_ operation: Operation, tuple: FourTuple? = nil, errno: Int32) {
        self.operation = operation
        self.tuple = tuple
        self.errno = errno
    }

    /// Whether the gateway has no way to the destination at present. Another time or another segment may do better.
    public var isUnreachable: Bool { [ENETUNREACH, EHOSTUNREACH, ENETDOWN, EHOSTDOWN, ENODEV].contains(errno) }

    /// Whether a packet filter of the gateway itself refused the segment (`ip_local_out` returns EPERM).
    public var isRefusedByFirewall: Bool { operation == .send && errno == EPERM }

    /// Whether the socket's buffer was full: the segment may be sent again a little later.
    public var isTransient: Bool { errno == EAGAIN || errno == ENOBUFS || errno == EINTR }
}

extension SpoofError: CustomStringConvertible {
    public var description: String {
        let reason = unsafe String(cString: strerror(errno))
        let segment = tuple.map { " \($0)" } ?? ""
        switch operation {
        case .open(let family) where errno == EPERM || errno == EACCES:
            return "A raw \(family.name) socket needs the capability CAP_NET_RAW: run the daemon as root or grant it."
        case .open(let family) where errno == EAFNOSUPPORT:
            return "This kernel has no \(family.name): segments of that family cannot be sent."
        case .open(let family):
            return "A raw \(family.name) socket cannot be opened: \(reason)."
        case .configure(let family) where errno == EPERM:
            return "Marking the segments of the raw \(family.name) socket needs CAP_NET_ADMIN or CAP_NET_RAW: grant it."
        case .configure(let family):
            return "The raw \(family.name) socket cannot be set up: \(reason)."
        case .send where isRefusedByFirewall:
            return "The gateway's own packet filter refused the segment\(segment) in its output chain: "
                + "accept packets with nfqmigd's mark there."
        case .send where isUnreachable:
            return "The gateway has no route for the segment\(segment) (\(reason)): see `ip route get`."
        case .send:
            return "The segment\(segment) was not sent: \(reason)."
        }
    }
}

extension AddressFamily {
    fileprivate var name: String { self == .ipv4 ? "IPv4" : "IPv6" }
}
