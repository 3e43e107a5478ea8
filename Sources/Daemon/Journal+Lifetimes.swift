// SPDX-License-Identifier: GPL-3.0-or-later

internal import Foundation
internal import GRDB
package import Migration
internal import Wire

/// A standing lifetime as it is written down.
private struct LifetimeDocument: Codable {
    var client: String
    var clientPort: UInt16?
    var home: String
    var endsAt: Double?
    var then: String?
    var confirmBy: Double?
}

extension SQLiteJournal {
    /// The table of lifetimes, in a journal that does not have it yet.
    static func registerLifetimes(_ migrator: inout DatabaseMigrator) {
        migrator.registerMigration("lifetimes") { database in
            try database.execute(
                sql:
                    "CREATE TABLE lifetime (migration INTEGER PRIMARY KEY, session TEXT NOT NULL, document TEXT NOT NULL)"
            )
        }
    }

    package func write(_ standing: StandingLifetime) throws(JournalError) {
        try access { database in
            let document = LifetimeDocument(
                client: standing.session.client.map { "\($0)" } ?? SessionKey.everyClient,
                clientPort: standing.session.clientPort,
                home: "\(standing.session.home)", endsAt: standing.endsAt, then: standing.then.map { "\($0)" },
                confirmBy: standing.confirmBy)
            let text = String(decoding: try JSONEncoder().encode(document), as: UTF8.self)
            try database.execute(
                sql: "INSERT OR REPLACE INTO lifetime VALUES (?, ?, ?)",
                arguments: [Int64(standing.migration), "\(standing.session.original)", text])
        }
    }

    package func forgetLifetime(_ migration: UInt64) throws(JournalError) {
        try access { database in
            try database.execute(sql: "DELETE FROM lifetime WHERE migration = ?", arguments: [Int64(migration)])
        }
    }

    package func lifetimes() throws(JournalError) -> [StandingLifetime] {
        try access { database in
            try Row.fetchAll(database, sql: "SELECT migration, document FROM lifetime ORDER BY migration").compactMap {
                row in
                let text: String = row["document"]
                let number: Int64 = row["migration"]
                let document = try JSONDecoder().decode(LifetimeDocument.self, from: Data(text.utf8))
                let client = IPAddress(document.client)
                guard client != nil || document.client == SessionKey.everyClient, let home = Endpoint(document.home)
                else { return nil }
                return StandingLifetime(
                    migration: UInt64(number),
                    session: SessionKey(client: client, clientPort: document.clientPort, home: home),
                    endsAt: document.endsAt, then: document.then.flatMap { Endpoint($0) }, confirmBy: document.confirmBy
                )
            }
        }
    }
}
