// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc
public import Wire

/// The kernel's connections, looked at and deleted by ctnetlink. TCP only. One thread at a time.
///
/// Needs CAP_NET_ADMIN in the user namespace of the network namespace.
public final class ConntrackTable {
    private let socket: NetfilterSocket
    private var sequence: UInt32 = 0

    /// Opens the socket in the calling thread's network namespace.
    public init() throws(ConntrackError) {
        // A dump's datagrams grow to 32 KiB where the reader's buffer allows it (`netlink_dump`).
        socket = try NetfilterSocket(groups: 0, bufferSize: 1 << 17)
        socket.setReceiveTimeout(seconds: 5)
    }

    /// All TCP connections, or those that `client` has opened, for which `filter` holds. One dump per family; only the
    /// client's family if it is given.
    ///
    /// An entry that appears or goes during the dump may be missing or listed.
    public func entries(
        client: IPAddress? = nil, where filter: (ConnectionEntry) -> Bool = { _ in true }
    ) throws(ConntrackError) -> [ConnectionEntry] {
        var all: [ConnectionEntry] = []
        for family in AddressFamily.allCases where client == nil || client?.family == family {
            do {
                try all.append(contentsOf: dump(family, client: client, where: filter))
            } catch let error where error.errno == EAFNOSUPPORT && family == .ipv6 {
                continue
            }
        }
        return all
    }

    /// Calls `body` with every TCP connection, without keeping them. As with `entries`, one that appears or goes meanwhile may
    /// be missing; one may come twice.
    public func forEachEntry(_ body: (ConnectionEntry) -> Void) throws(ConntrackError) {
        _ = try entries { entry in
            body(entry)
            return false
        }
    }

    /// The connection whose initiator sends with this tuple, as it is before any translation; nil when there is none.
    public func entry(original: FourTuple, zone: UInt16 = 0) throws(ConntrackError) -> ConnectionEntry? {
        try look(original, isReply: false, zone: zone)
    }

    /// The connection whose responder answers with this tuple, as it is before its translation is undone; nil when
    /// there is none.
    public func entry(reply: FourTuple, zone: UInt16 = 0) throws(ConntrackError) -> ConnectionEntry? {
        try look(reply, isReply: true, zone: zone)
    }

    /// Deletes this entry and no other: by its original tuple, zone and identifier.
    ///
    /// The identifier is derived from the entry's place in memory and its tuple (`nf_ct_get_id`), so a newer entry of
    /// the same tuple is spared unless it took over the very place.
    ///
    /// - Returns: false when it had gone already.
    public func delete(_ entry: ConnectionEntry) throws(ConntrackError) -> Bool {
        let sequence = nextSequence()
        let result = exchange(Ctnetlink.delete(entry, sequence: sequence), sequence: sequence) { _, _ in }
        switch result {
        case 0: return true
        case ENOENT: return false
        default: throw ConntrackError(.delete, tuple: entry.original, errno: result)
        }
    }

    /// Deletes these entries and no others, many in one message to the kernel. An entry that had gone already counts as
    /// deleted.
    ///
    /// - Returns: what went wrong, in no particular order; empty when all are gone.
    public func delete(_ entries: [ConnectionEntry]) -> [ConntrackError] {
        var errors: [ConntrackError] = []
        // Each deletion is acknowledged, and the answers have to fit into the socket's receive buffer.
        for start in stride(from: 0, to: entries.count, by: 64) {
            let group = entries[start..<min(start + 64, entries.count)]
            var waiting: [UInt32: FourTuple] = [:]
            var messages: [UInt8] = []
            for entry in group {
                let sequence = nextSequence()
                waiting[sequence] = entry.original
                messages += Ctnetlink.delete(entry, sequence: sequence)
            }
            let failure = socket.send(messages)
            guard failure == 0 else {
                errors += group.map { ConntrackError(.delete, tuple: $0.original, errno: failure) }
                continue
            }
            errors += awaitDeletions(&waiting)
        }
        return errors
    }

    private func awaitDeletions(_ waiting: inout [UInt32: FourTuple]) -> [ConntrackError] {
        var errors: [ConntrackError] = []
        while !waiting.isEmpty {
            let failure = socket.receive { header, rest in
                guard Int32(header.type) == NLMSG_ERROR, rest.count >= 4,
                    let tuple = waiting.removeValue(forKey: header.sequence)
                else { return }
                let number = -Int32(bitPattern: rest.hostInteger32(at: 0))
                if number != 0, number != ENOENT {
                    errors.append(ConntrackError(.delete, tuple: tuple, errno: number))
                }
            }
            if failure == 0 || failure == EINTR { continue }
            let number = failure == EAGAIN ? ETIMEDOUT : failure
            return errors + waiting.values.map { ConntrackError(.delete, tuple: $0, errno: number) }
        }
        return errors
    }

    private func dump(
        _ family: AddressFamily, client: IPAddress?, where filter: (ConnectionEntry) -> Bool
    ) throws(ConntrackError) -> [ConnectionEntry] {
        for _ in 0..<5 {
            var entries: [ConnectionEntry] = []
            var isInterrupted = false
            let sequence = nextSequence()
            let request = Ctnetlink.list(family, client: client, sequence: sequence)
            let result = exchange(request, sequence: sequence) { header, rest in
                if header.flags & UInt16(NLM_F_DUMP_INTR) != 0 { isInterrupted = true }
                guard let entry = Self.entry(header, rest), client == nil || entry.original.source.address == client,
                    filter(entry)
                else { return }
                entries.append(entry)
            }
            guard result == 0 else { throw ConntrackError(.list, errno: result) }
            if !isInterrupted { return entries }
        }
        throw ConntrackError(.list, errno: EINTR)
    }

    private func look(_ tuple: FourTuple, isReply: Bool, zone: UInt16) throws(ConntrackError) -> ConnectionEntry? {
        let sequence = nextSequence()
        var found: ConnectionEntry?
        let request = Ctnetlink.look(tuple, isReply: isReply, zone: zone, sequence: sequence)
        let result = exchange(request, sequence: sequence, isSingle: true) { header, rest in
            if let entry = Self.entry(header, rest) { found = entry }
        }
        switch result {
        case 0:
            // The kernel looks a tuple up in both directions: an entry of the other direction is not what was asked
            // for.
            return found.flatMap { (isReply ? $0.reply : $0.original) == tuple ? $0 : nil }
        case ENOENT: return nil
        default: throw ConntrackError(.look, tuple: tuple, errno: result)
        }
    }

    private static func entry(_ header: NetfilterSocket.Header, _ rest: Span<UInt8>) -> ConnectionEntry? {
        guard header.type == Ctnetlink.new, rest.count >= 4 else { return nil }
        return ConnectionEntry(attributes: rest.extracting(4..<rest.count))
    }

    private func nextSequence() -> UInt32 {
        sequence &+= 1
        return sequence
    }

    /// Sends a request and hands over its answers until the kernel says that it is done, or after the first when there is one
    /// only.
    ///
    /// - Returns: 0 or the error number.
    private func exchange(
        _ request: [UInt8], sequence: UInt32, isSingle: Bool = false,
        _ body: (NetfilterSocket.Header, Span<UInt8>) -> Void
    ) -> Int32 {
        let failure = socket.send(request)
        guard failure == 0 else { return failure }
        var result: Int32?
        while result == nil {
            let failure = socket.receive { header, rest in
                // An answer to an earlier request that was given up.
                guard header.sequence == sequence, result == nil else { return }
                switch Int32(header.type) {
                case NLMSG_DONE, NLMSG_ERROR:
                    // Both carry a number: 0 for success, else negative. NLMSG_DONE may come without.
                    result = rest.count >= 4 ? -Int32(bitPattern: rest.hostInteger32(at: 0)) : 0
                default:
                    body(header, rest)
                    if isSingle { result = 0 }
                }
            }
            switch failure {
            case 0, EINTR: continue
            case EAGAIN: return ETIMEDOUT
            default: return failure
            }
        }
        return result ?? EBADMSG
    }
}
