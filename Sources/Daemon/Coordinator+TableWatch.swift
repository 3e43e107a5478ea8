// SPDX-License-Identifier: GPL-3.0-or-later

internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Ruleset

// Reloading a firewall that begins with `flush ruleset` deletes every table of the namespace, ours too, or puts an old state of it in
// its place. From then on new connections of sessions go home, and segments that user space should rewrite go as they are; and
// without another rule that wants it, the kernel tracks no connection any more.
extension Coordinator {
    /// How long that can last, in nanoseconds. A look is one question to the kernel while nobody else changes nf_tables. (The kernel
    /// would tell by itself, but of every element of each of our own changes too.)
    private static let lookInterval: UInt64 = 1_000_000_000

    /// Looks after the table from now on.
    func watchTable() {
        loop.schedule(at: EventLoop.now + Self.lookInterval) {
            if self.isStopping { return }
            do {
                try self.lookAfterTable()
            } catch {
                self.logger.error("\(error)")
            }
            self.watchTable()
        }
    }

    private func lookAfterTable() throws {
        switch try gateway.table.condition() {
        case .whole: break
        case .entrancesChanged:
            logger.error("another program has taken rules out of the table; they are written again")
            try gateway.table.apply(.renewalOfEntrances)
        case .lost: try restoreTable()
        }
    }

    /// Makes the table again, which somebody has deleted or changed, with everything that belongs into it.
    func restoreTable() throws {
        logger.error(
            "the table was deleted or changed by another program; it is made again",
            metadata: ["sessions": "\(sessions.count)"])
        _ = try gateway.table.establish(carrying: additions(for: sessions.values), anew: true)
        // What packets have taught it is lost, but for what sessions have heard of.
        mayHaveForgotten = mayHaveForgotten || sessions.values.contains { $0.binding?.datapath == .queue }
    }
}
