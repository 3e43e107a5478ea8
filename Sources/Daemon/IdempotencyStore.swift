// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation

/// Remembers answers by the key that a client has chosen for its request, so that a request whose answer was lost can be
/// sent again and is carried out once. Lives as long as the daemon.
actor IdempotencyStore {
    /// Seconds that an answer is kept.
    static let lifetime: UInt64 = 86_400
    /// How many answers are kept, and how many octets they may have together. The oldest of the user who has most give way, so
    /// that nobody who floods the store takes others' answers out of it.
    static let capacity = 10_000
    static let room = 32 << 20

    private struct Name: Hashable {
        var user: UInt32
        var key: String
    }

    private struct Entry {
        let request: String
        let body: Data
        let since: UInt64
        let answer: Task<Reply, Never>
        var size: Int
    }

    /// What a user has in the store.
    private struct Share {
        /// Keys in the order of their first use; some may have gone.
        var order: [(key: String, since: UInt64)] = []
        var count = 0
        var size = 0
    }

    private var entries: [Name: Entry] = [:]
    private var shares: [UInt32: Share] = [:]

    /// The answer to a request: of `carryOut`, or the one of the same request before. Keys of different users are
    /// different keys.
    func reply(
        _ key: String, caller: Caller, to request: String, _ body: Data,
        _ carryOut: @escaping @Sendable () async -> Reply
    ) async -> Reply {
        let now = EventLoop.now
        makeRoom(now)
        let name = Name(user: caller.user, key: key)
        if let entry = entries[name] {
            guard entry.request == request, entry.body == body else {
                return Reply(
                    Problem(
                        kind: .idempotencyKeyReused,
                        detail: "The Idempotency-Key \(quoted(key)) was used for another request: choose a new key."))
            }
            var reply = await entry.answer.value
            reply.headers["idempotency-replayed"] = "true"
            return reply
        }
        // Not a child: the request is carried out also when the client goes.
        let answer = Task { await carryOut() }
        entries[name] = Entry(request: request, body: body, since: now, answer: answer, size: body.count)
        shares[caller.user, default: Share()].order.append((key, now))
        shares[caller.user]?.count += 1
        shares[caller.user]?.size += body.count
        let reply = await answer.value
        guard entries[name]?.since == now else { return reply }
        if reply.status == 429 || reply.status >= 500 {
            // It may go well another time.
            forget(name)
        } else {
            entries[name]?.size += reply.body.count
            shares[caller.user]?.size += reply.body.count
        }
        return reply
    }

    private func makeRoom(_ now: UInt64) {
        for user in shares.keys {
            while let first = shares[user]?.order.first, now - first.since > Self.lifetime * 1_000_000_000 {
                forgetOldest(of: user)
            }
        }
        while entries.count >= Self.capacity, let user = shares.max(by: { $0.value.count < $1.value.count })?.key {
            forgetOldest(of: user)
        }
        while shares.values.reduce(0, { $0 + $1.size }) > Self.room,
            let user = shares.max(by: { $0.value.size < $1.value.size })?.key
        {
            forgetOldest(of: user)
        }
    }

    private func forgetOldest(of user: UInt32) {
        guard let oldest = shares[user]?.order.first else { return shares[user] = nil }
        shares[user]?.order.removeFirst()
        let name = Name(user: user, key: oldest.key)
        if entries[name]?.since == oldest.since { forget(name) }
    }

    private func forget(_ name: Name) {
        guard let entry = entries.removeValue(forKey: name) else { return }
        shares[name.user]?.count -= 1
        shares[name.user]?.size -= entry.size
    }
}
