// SPDX-License-Identifier: GPL-3.0-or-later

internal import Logging
internal import Migration
internal import NFQueueBridge

// Reloading a firewall that begins with `flush ruleset` deletes every table of the namespace, ours too. From then on new connections of
// sessions go home, and segments that user space should rewrite go as they are.
extension Coordinator {
    /// How long that can last, in nanoseconds. A look is one question to the kernel; while there is no session none is needed.
    /// (nf_tables would tell, but of every element of each of our own changes too.)
    private static let lookInterval: UInt64 = 1_000_000_000

    /// Sees to it that the table is looked for as long as there are sessions.
    func watchTable() {
        guard tableTimer == nil, sessions.count > 0, !isStopping else { return }
        tableTimer = loop.schedule(at: EventLoop.now + Self.lookInterval) {
            self.tableTimer = nil
            guard !self.isStopping, self.sessions.count > 0 else { return }
            do {
                if try !self.gateway.table.exists { try self.restoreTable() }
            } catch {
                self.logger.error("\(error)")
            }
            self.watchTable()
        }
    }

    /// Makes a table again that somebody has deleted, with everything that belongs into it.
    func restoreTable() throws {
        logger.error(
            "the table was deleted by another program; it is made again",
            metadata: ["sessions": "\(sessions.count)"])
        _ = try gateway.table.establish(carrying: additions(for: sessions.values))
        // What packets have taught it is lost, but for what sessions have heard of.
        mayHaveForgotten = mayHaveForgotten || sessions.values.contains { $0.binding?.datapath == .queue }
    }
}
