// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
internal import Foundation
internal import GRDB
package import Migration

/// A drain as it is written down when it begins, with what has become of it.
package struct JournaledDrain: Sendable {
    /// What does not change.
    package struct Beginning: Codable, Hashable, Sendable {
        var order: DrainOrder
        /// Who asked for it.
        var user: UInt32
        var group: UInt32
        var process: Int32
        var requestedAt: Double
        /// The sessions in the order of their turns, as they were.
        var members: [SessionDocument]

        package init(
            order: DrainOrder, user: UInt32, group: UInt32, process: Int32, requestedAt: Double,
            members: [SessionDocument]
        ) {
            self.order = order
            self.user = user
            self.group = group
            self.process = process
            self.requestedAt = requestedAt
            self.members = members
        }
    }

    package var id: UInt64
    package var beginning: Beginning
    package var progress: DrainProgress
    package var turns: [JournaledTurn]
}

/// How far a drain is as a whole.
package struct DrainProgress: Codable, Hashable, Sendable {
    package var isPaused = false
    package var isCancelled = false
    package var isCanaryOver = false
    package var stopReason: String?

    package init() {}
}

/// What has become of one session of a drain.
package struct JournaledTurn: Codable, Hashable, Sendable {
    package var drain: UInt64
    package var place: Int
    /// The to-host's place in the order.
    package var host: Int
    package var result: Drain.Result
    /// The session's number.
    package var session: UInt64
    /// Whether a new connection of its client was to be expected.
    package var isAwaited: Bool
    /// Whether it is back where it was; nil when it was not sent there.
    package var isBack: Bool?

    package init(
        drain: UInt64, place: Int, host: Int, result: Drain.Result, session: UInt64, isAwaited: Bool,
        isBack: Bool? = nil
    ) {
        self.drain = drain
        self.place = place
        self.host = host
        self.result = result
        self.session = session
        self.isAwaited = isAwaited
        self.isBack = isBack
    }
}

/// Of which drain a journaled migration is, and for which of its sessions.
package struct JournaledMember: Codable, Hashable, Sendable {
    var drain: UInt64
    var place: Int
    var host: Int
    var isReturning: Bool

    package init(drain: UInt64, place: Int, host: Int, isReturning: Bool) {
        self.drain = drain
        self.place = place
        self.host = host
        self.isReturning = isReturning
    }
}

extension SQLiteJournal {
    /// The tables of drains, in a journal that does not have them yet.
    static func registerDrains(_ migrator: inout DatabaseMigrator) {
        migrator.registerMigration("drains") { database in
            try database.execute(
                sql: """
                    CREATE TABLE drain (id INTEGER PRIMARY KEY, beginning TEXT, progress TEXT, report TEXT);
                    CREATE TABLE turn (drain INTEGER NOT NULL, place INTEGER NOT NULL, document TEXT NOT NULL,
                        PRIMARY KEY (drain, place)) WITHOUT ROWID;
                    """)
        }
    }

    package func write(_ beginning: JournaledDrain.Beginning, of drain: UInt64) throws(JournalError) {
        try access { database in
            let encoder = JSONEncoder()
            let document = String(decoding: try encoder.encode(beginning), as: UTF8.self)
            let progress = String(decoding: try encoder.encode(DrainProgress()), as: UTF8.self)
            try database.execute(
                sql: "INSERT INTO drain VALUES (?, ?, ?, NULL)", arguments: [Int64(drain), document, progress])
            // Migrations and drains are numbered together.
            try database.execute(
                sql: "UPDATE counter SET value = MAX(value, ?) WHERE name = 'migration'", arguments: [Int64(drain)])
        }
    }

    package func write(_ progress: DrainProgress, of drain: UInt64) throws(JournalError) {
        try access { database in
            let document = String(decoding: try JSONEncoder().encode(progress), as: UTF8.self)
            try database.execute(
                sql: "UPDATE drain SET progress = ? WHERE id = ?", arguments: [document, Int64(drain)])
        }
    }

    package func write(_ report: DrainReport, of drain: UInt64) throws(JournalError) {
        try access { database in
            let document = String(decoding: try JSONEncoder().encode(report), as: UTF8.self)
            try database.execute(
                sql: "UPDATE drain SET report = ?, beginning = NULL, progress = NULL WHERE id = ?",
                arguments: [document, Int64(drain)])
            try database.execute(sql: "DELETE FROM turn WHERE drain = ?", arguments: [Int64(drain)])
        }
    }

    package func forgetDrain(_ id: UInt64) throws(JournalError) {
        try access { database in
            try database.execute(sql: "DELETE FROM drain WHERE id = ?", arguments: [Int64(id)])
            try database.execute(sql: "DELETE FROM turn WHERE drain = ?", arguments: [Int64(id)])
        }
    }

    package func drains() throws(JournalError) -> [JournaledDrain] {
        try access { database in
            let decoder = JSONDecoder()
            let turns = try Row.fetchAll(database, sql: "SELECT document FROM turn ORDER BY drain, place").map { row in
                try decoder.decode(JournaledTurn.self, from: Data((row["document"] as String).utf8))
            }
            let ofDrain = Dictionary(grouping: turns, by: \.drain)
            return try Row.fetchAll(database, sql: "SELECT * FROM drain WHERE report IS NULL ORDER BY id").map { row in
                let id = UInt64(row["id"] as Int64)
                return JournaledDrain(
                    id: id,
                    beginning: try decoder.decode(
                        JournaledDrain.Beginning.self, from: Data((row["beginning"] as String).utf8)),
                    progress: try decoder.decode(
                        DrainProgress.self, from: Data((row["progress"] as String).utf8)),
                    turns: ofDrain[id] ?? [])
            }
        }
    }

    package func endedDrains() throws(JournalError) -> [DrainReport] {
        try access { database in
            try String.fetchAll(database, sql: "SELECT report FROM drain WHERE report IS NOT NULL ORDER BY id").map {
                try JSONDecoder().decode(DrainReport.self, from: Data($0.utf8))
            }
        }
    }

    static func put(_ turn: JournaledTurn, into database: Database) throws {
        try database.cachedStatement(sql: "INSERT OR REPLACE INTO turn VALUES (?, ?, ?)")
            .execute(arguments: [Int64(turn.drain), turn.place, turn.text])
    }
}
