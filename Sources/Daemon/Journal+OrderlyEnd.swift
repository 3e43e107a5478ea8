// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Foundation
internal import GRDB

/// What a daemon that ends in order leaves in the journal: journal and table agreed, and this is how to see whether anybody
/// has touched the table since. The next daemon takes it before it does anything, so that it speaks of no later time.
package struct OrderlyEnd: Hashable, Sendable {
    /// The kernel's number of this boot.
    package var boot: String
    /// The number of the network namespace, in this boot.
    package var network: UInt64
    /// The generation of nf_tables there.
    package var generation: UInt32

    package init(boot: String, network: UInt64, generation: UInt32) {
        self.boot = boot
        self.network = network
        self.generation = generation
    }

    /// This generation, here and now; nil where it cannot be said what here is.
    init?(generation: UInt32) {
        let network = nfqmig_network_cookie()
        guard network != 0, let boot = try? String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
        else { return nil }
        self.init(
            boot: boot.trimmingCharacters(in: .whitespacesAndNewlines), network: network, generation: generation)
    }
}

extension SQLiteJournal {
    /// The table of orderly ends, of which there is one at most.
    static func registerOrderlyEnd(_ migrator: inout DatabaseMigrator) {
        migrator.registerMigration("orderly end") { database in
            try database.execute(
                sql:
                    "CREATE TABLE orderly_end (boot TEXT NOT NULL, network INTEGER NOT NULL, generation INTEGER NOT NULL)"
            )
        }
    }

    package func takeOrderlyEnd() throws(JournalError) -> OrderlyEnd? {
        try access { database in
            guard let row = try Row.fetchOne(database, sql: "SELECT boot, network, generation FROM orderly_end") else {
                return nil
            }
            try database.execute(sql: "DELETE FROM orderly_end")
            let network: Int64 = row["network"]
            let generation: Int64 = row["generation"]
            return OrderlyEnd(
                boot: row["boot"], network: UInt64(bitPattern: network),
                generation: UInt32(truncatingIfNeeded: generation))
        }
    }

    package func write(_ end: OrderlyEnd) throws(JournalError) {
        // What could not be written is in the table all the same, perhaps.
        if hasFailed { return }
        try access { database in
            try database.execute(
                sql: "DELETE FROM orderly_end; INSERT INTO orderly_end VALUES (?, ?, ?)",
                arguments: [end.boot, Int64(bitPattern: end.network), Int64(end.generation)])
        }
    }
}
