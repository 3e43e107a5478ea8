// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import CNetfilter
internal import Glibc
internal import Wire

/// Something that has happened to a connection. An entry in an event carries what concerns the event: the state is
/// absent where it has not changed.
public enum ConntrackEvent: Hashable, Sendable {
    case new(ConnectionEntry)
    case updated(ConnectionEntry)
    case destroyed(ConnectionEntry)
    /// The socket's buffer overflowed and events are missing: whoever counts on them has to list the connections.
    case lost
}

/// A subscription to conntrack's events of TCP connections, for an epoll loop. One thread at a time.
///
/// Needs CAP_NET_ADMIN, and net.netfilter.nf_conntrack_events other than 0. With 2, the default of newer kernels,
/// entries that are made while nobody is subscribed have no events at all, not even later (`nf_ct_ecache_ext_add`).
public final class ConntrackEvents {
    private let socket: NetfilterSocket

    /// Subscribes in the calling thread's network namespace.
    ///
    /// - Parameters:
    ///   - ends: whether to hear of connections that have gone, too. Where nobody does the kernel makes no such events.
    ///   - receiveBuffer: octets of events that the kernel may keep for us; about 400 per event.
    public init(ends: Bool = true, receiveBuffer: Int = 16 << 20) throws(ConntrackError) {
        let wanted = [NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_UPDATE] + (ends ? [NFNLGRP_CONNTRACK_DESTROY] : [])
        let groups = wanted.reduce(UInt32(0)) { $0 | 1 << (UInt32($1.rawValue) - 1) }
        socket = try NetfilterSocket(groups: groups, bufferSize: 1 << 16)
        let size = Int32(clamping: receiveBuffer)
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the first user namespace.
        if !socket.setOption(SOL_SOCKET, SO_RCVBUFFORCE, size) { _ = socket.setOption(SOL_SOCKET, SO_RCVBUF, size) }
        let flags = fcntl(socket.fileDescriptor, F_GETFL)
        guard flags >= 0, fcntl(socket.fileDescriptor, F_SETFL, flags | O_NONBLOCK) == 0 else {
            throw ConntrackError(.subscribe, errno: errno)
        }
        // Events of other protocols are not even copied to us with this.
        let result = nfqmig_receive_only_tcp_conntrack(socket.fileDescriptor)
        guard result == 0 else { throw ConntrackError(.subscribe, errno: -result) }
    }

    /// Readable when events wait.
    public var fileDescriptor: Int32 { socket.fileDescriptor }

    /// Hands over what waits, without blocking.
    public func drain(_ body: (ConntrackEvent) -> Void) throws(ConntrackError) {
        while true {
            let failure = socket.receive { header, rest in
                guard rest.count >= 4,
                    header.type == Ctnetlink.new || header.type == Ctnetlink.delete,
                    let entry = ConnectionEntry(attributes: rest.extracting(4..<rest.count))
                else { return }
                // A new entry is announced like a change, but with NLM_F_CREATE (`ctnetlink_conntrack_event`).
                if header.type == Ctnetlink.delete {
                    body(.destroyed(entry))
                } else {
                    body(header.flags & UInt16(NLM_F_CREATE) != 0 ? .new(entry) : .updated(entry))
                }
            }
            switch failure {
            case 0, EINTR: continue
            case EAGAIN: return
            case ENOBUFS: body(.lost)
            default: throw ConntrackError(.receive, errno: failure)
            }
        }
    }
}
