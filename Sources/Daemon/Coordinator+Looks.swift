// SPDX-License-Identifier: GPL-3.0-or-later

internal import Conntrack
internal import Glibc
internal import Migration
internal import Wire

// A migration of all connections of a client looks for them twice, since asking the to-host takes its time. Conntrack lists
// them by walking all its buckets, which takes milliseconds on a gateway; so the second look asks for each that was found, and
// for those that conntrack has announced since.
extension Coordinator {
    /// Connections beyond which a second list is cheaper than one question each.
    private static let most = 128

    /// How the connections are answered that user space carries for a client: it has heard of each, so none has to be looked for.
    /// nil when a list is called for.
    func knownReplies(of key: SessionKey, _ binding: Binding?) -> Set<FourTuple>? {
        guard key.scope == .client, binding?.datapath == .queue, let session = sessions[key],
            session.binding == binding,
            session.replies.count <= Self.most
        else { return nil }
        return session.replies.filter { $0.source == session.host && $0.destination.address == key.client }
    }

    /// How many new connections conntrack has announced before the first look of a migration that looks a second time; nil
    /// when there is no second one, or nothing is announced.
    func announcements(before request: MigrationRequest) -> UInt64? {
        guard request.session.scope == .client, request.to != nil, request.checksHost else { return nil }
        do {
            try openEvents()
        } catch {
            return nil
        }
        // Whatever becomes of the request: its migration may never begin.
        closeEventsWhenIdle()
        return Self.areAnnounced ? announced.count : nil
    }

    /// Looks a second time. nil when a list is called for.
    func again(
        _ look: ConnectionLook, at destination: Endpoint, of key: SessionKey
    ) throws -> [ConnectionEntry]? {
        guard key.scope == .client, look.destination == destination else { return nil }
        drainEvents()
        guard let later = announced.since(look.position) else { return nil }
        let news = later.filter {
            $0.tuple.source.address == key.client && $0.tuple.destination == destination
        }
        let wanted = look.found.union(news)
        guard wanted.count <= Self.most else { return nil }
        return try wanted.compactMap { try gateway.conntrack.entry(original: $0.tuple, zone: $0.zone) }
    }

    /// Whether the kernel announces connections at all (net.netfilter.nf_conntrack_events).
    private static var areAnnounced: Bool {
        let file = unsafe open("/proc/sys/net/netfilter/nf_conntrack_events", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return false }
        defer { close(file) }
        var setting: UInt8 = 0
        return unsafe read(file, &setting, 1) == 1 && setting != UInt8(ascii: "0")
    }
}

/// What a look at a client's connections has found, and when that was.
struct ConnectionLook {
    let destination: Endpoint
    let found: Set<TrackedTuple>
    /// Connections that had been announced before it.
    let position: UInt64

    init(_ entries: [ConnectionEntry], at destination: Endpoint, after position: UInt64) {
        self.destination = destination
        self.position = position
        found = Set(entries.lazy.filter { $0.original.destination == destination }.map { TrackedTuple($0) })
    }
}
