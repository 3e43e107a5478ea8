// SPDX-License-Identifier: GPL-3.0-or-later

internal import GRDB

extension SQLiteJournal {
    /// The table of the webhooks' positions, in a journal that does not have it yet.
    static func registerWebhooks(_ migrator: inout DatabaseMigrator) {
        migrator.registerMigration("webhooks") { database in
            try database.execute(
                sql: "CREATE TABLE webhook (name TEXT PRIMARY KEY, event INTEGER NOT NULL) WITHOUT ROWID")
        }
    }

    package func positions() throws(JournalError) -> [String: UInt64] {
        try access { database in
            try Row.fetchAll(database, sql: "SELECT name, event FROM webhook").reduce(into: [:]) { positions, row in
                let name: String = row["name"]
                let event: Int64 = row["event"]
                positions[name] = UInt64(event)
            }
        }
    }

    package func setPosition(of webhook: String, to event: UInt64) throws(JournalError) {
        try access { database in
            try database.cachedStatement(sql: "INSERT OR REPLACE INTO webhook VALUES (?, ?)")
                .execute(arguments: [webhook, Int64(event)])
        }
    }

    package func forgetPositions(except webhooks: [String]) throws(JournalError) {
        try access { database in
            for name in try String.fetchAll(database, sql: "SELECT name FROM webhook") where !webhooks.contains(name) {
                try database.execute(sql: "DELETE FROM webhook WHERE name = ?", arguments: [name])
            }
        }
    }
}
