// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
internal import Foundation
internal import GRDB
package import Migration
internal import Rewriter
internal import Wire

/// What outlives the daemon: sessions, and migrations that are not finished. Each step is written before its effect.
package protocol Journal: AnyObject {
    func load() throws(JournalError) -> JournalContents
    /// Writes a session, or forgets it when it is idle.
    func write(_ session: Session) throws(JournalError)
    /// Writes a migration's progress together with the session as it is to be.
    func write(_ entry: JournaledMigration, _ session: Session) throws(JournalError)
    func forgetMigration(_ id: UInt64) throws(JournalError)
    /// A number that is kept by its name; 0 when it was never written.
    func counter(_ name: String) throws(JournalError) -> UInt64
    func setCounter(_ name: String, to value: UInt64) throws(JournalError)
    /// Writes sessions whose keys have changed, all of them or none.
    func write(_ sessions: [Session], insteadOf keys: [SessionKey]) throws(JournalError)
    /// Writes down when a switched migration ends by itself.
    func write(_ standing: StandingLifetime) throws(JournalError)
    func lifetimes() throws(JournalError) -> [StandingLifetime]
    func forgetLifetime(_ migration: UInt64) throws(JournalError)
    /// The last event that each webhook has been told, by the webhook's name.
    func positions() throws(JournalError) -> [String: UInt64]
    func setPosition(of webhook: String, to event: UInt64) throws(JournalError)
    /// Forgets those of all other webhooks.
    func forgetPositions(except webhooks: [String]) throws(JournalError)
    /// Writes down what a drain is to do.
    func write(_ beginning: JournaledDrain.Beginning, of drain: UInt64) throws(JournalError)
    func write(_ progress: DrainProgress, of drain: UInt64) throws(JournalError)
    /// Writes down how a drain has ended, in place of the rest.
    func write(_ report: DrainReport, of drain: UInt64) throws(JournalError)
    func forgetDrain(_ id: UInt64) throws(JournalError)
    /// Those that have not ended.
    func drains() throws(JournalError) -> [JournaledDrain]
    func endedDrains() throws(JournalError) -> [DrainReport]
    /// What the daemon before has left when it ended in order; nil when it was taken before, or when it had no such end.
    func takeOrderlyEnd() throws(JournalError) -> OrderlyEnd?
    /// Writes down that journal and table agree; nothing when something could not be written before.
    func write(_ end: OrderlyEnd) throws(JournalError)
    /// Writes many steps in one transaction.
    func write(_ batch: JournalBatch) throws(JournalError)
}

/// What is written down together.
package struct JournalBatch {
    /// Sessions as they are to be; idle ones are forgotten.
    package var sessions: [Session] = []
    package var migrations: [JournaledMigration] = []
    /// Migrations that hold nothing more.
    package var forgotten: [UInt64] = []
    /// What has become of drains' sessions.
    package var turns: [JournaledTurn] = []

    package init() {}

    package var isEmpty: Bool { sessions.isEmpty && migrations.isEmpty && forgotten.isEmpty && turns.isEmpty }
}

package struct JournalContents {
    package var sessions: [Session]
    package var migrations: [JournaledMigration]
    /// The highest migration number ever given out.
    package var lastMigration: UInt64
}

/// A migration between its switch and its end.
package struct JournaledMigration: Codable, Hashable, Sendable {
    package enum Stage: String, Codable, Sendable {
        /// The table may have been changed; the old connection is unharmed. To be taken back.
        case switching
        /// The point of no return is passed. To be brought to its end.
        case resetting
    }

    package var id: UInt64
    var stage: Stage
    /// The session before, as a document, for taking back.
    package var before: SessionDocument
    package var to: String?
    package var datapath: String
    package var passive: Bool
    package var fromHost: String
    package var connections: [ConnectionDocument]
    /// The session of a drain that it moves; nil for a migration by itself.
    package var member: JournaledMember?

    package init(
        id: UInt64, stage: Stage, before: SessionDocument, to: String?, datapath: String, passive: Bool,
        fromHost: String, connections: [ConnectionDocument]
    ) {
        self.id = id
        self.stage = stage
        self.before = before
        self.to = to
        self.datapath = datapath
        self.passive = passive
        self.fromHost = fromHost
        self.connections = connections
    }
}

package struct ConnectionDocument: Codable, Hashable, Sendable {
    var clientSide: [String]
    var serverSide: [String]
    var phase: ConnectionPhase
    var probePort: UInt16?
}

/// A session as it is written down. Replies are not: the kernel's table is read for them.
package struct SessionDocument: Codable, Hashable, Sendable {
    struct TransitDocument: Codable, Hashable, Sendable {
        var source: String
        var destination: String
        var transit: String
        var host: String
        var lifetime: UInt32
        var migration: UInt64
        var sourcePort: UInt16?
    }

    var id: UInt64
    var client: String
    var clientPort: UInt16?
    var home: String
    var host: String?
    var datapath: String?
    var sourcePort: UInt16?
    var yields: Bool?
    var transits: [TransitDocument]
}

/// The journal in SQLite, in the state directory.
package final class SQLiteJournal: Journal {
    private let database: DatabaseQueue
    /// Whether anything could not be written, or read.
    private(set) var hasFailed = false

    /// Opens or creates the journal in `directory`.
    package init(directory: String) throws(JournalError) {
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            var configuration = GRDB.Configuration()
            configuration.prepareDatabase { database in
                // A drain writes the same pages again and again: what is written rarely into the database itself is written
                // once (every 16 MiB), and waited for less often.
                try database.execute(
                    sql: """
                        PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4096
                        """)
            }
            database = try DatabaseQueue(path: directory + "/journal.sqlite", configuration: configuration)
            var migrator = DatabaseMigrator()
            migrator.registerMigration("1") { database in
                try database.execute(
                    sql: """
                        CREATE TABLE session (key TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
                        CREATE TABLE migration (id INTEGER PRIMARY KEY, document TEXT NOT NULL);
                        CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
                        INSERT INTO counter VALUES ('migration', 0);
                        """)
            }
            Self.registerLifetimes(&migrator)
            Self.registerWebhooks(&migrator)
            Self.registerDrains(&migrator)
            Self.registerOrderlyEnd(&migrator)
            try migrator.migrate(database)
        } catch {
            throw JournalError(path: directory, reason: "\(error)")
        }
    }

    package func load() throws(JournalError) -> JournalContents {
        try access { database in
            let decoder = JSONDecoder()
            let sessions = try Self.sessions(database, decoder)
            let migrations = try String.fetchAll(database, sql: "SELECT document FROM migration ORDER BY id").map {
                try decoder.decode(JournaledMigration.self, from: Data($0.utf8))
            }
            let last = try Int64.fetchOne(database, sql: "SELECT value FROM counter WHERE name = 'migration'") ?? 0
            return JournalContents(sessions: sessions, migrations: migrations, lastMigration: UInt64(last))
        }
    }

    private static func sessions(_ database: Database, _ decoder: JSONDecoder) throws -> [Session] {
        var sessions: [Session] = []
        var texts = EndpointTexts()
        let rows = try String.fetchCursor(database, sql: "SELECT document FROM session")
        while let text = try rows.next() {
            if let session = Session(scanning: text, &texts) {
                sessions.append(session)
            } else {
                let document = try decoder.decode(SessionDocument.self, from: Data(text.utf8))
                if let session = document.session { sessions.append(session) }
            }
        }
        return sessions
    }

    package func write(_ session: Session) throws(JournalError) {
        var batch = JournalBatch()
        batch.sessions = [session]
        try write(batch)
    }

    package func write(_ entry: JournaledMigration, _ session: Session) throws(JournalError) {
        var batch = JournalBatch()
        batch.migrations = [entry]
        batch.sessions = [session]
        try write(batch)
    }

    package func forgetMigration(_ id: UInt64) throws(JournalError) {
        var batch = JournalBatch()
        batch.forgotten = [id]
        try write(batch)
    }

    package func write(_ batch: JournalBatch) throws(JournalError) {
        if batch.isEmpty { return }
        try access { database in
            for entry in batch.migrations { try Self.put(entry, into: database) }
            if let highest = batch.migrations.map(\.id).max() {
                try database.cachedStatement(sql: "UPDATE counter SET value = MAX(value, ?) WHERE name = 'migration'")
                    .execute(arguments: [Int64(highest)])
            }
            for session in batch.sessions { try Self.put(session, into: database) }
            for turn in batch.turns { try Self.put(turn, into: database) }
            for id in batch.forgotten {
                try database.cachedStatement(sql: "DELETE FROM migration WHERE id = ?").execute(arguments: [Int64(id)])
            }
        }
    }

    package func counter(_ name: String) throws(JournalError) -> UInt64 {
        try access { database in
            UInt64(
                try Int64.fetchOne(database, sql: "SELECT value FROM counter WHERE name = ?", arguments: [name]) ?? 0)
        }
    }

    package func setCounter(_ name: String, to value: UInt64) throws(JournalError) {
        try access { database in
            try database.execute(
                sql: "INSERT OR REPLACE INTO counter VALUES (?, ?)", arguments: [name, Int64(value)])
        }
    }

    package func write(_ sessions: [Session], insteadOf keys: [SessionKey]) throws(JournalError) {
        try access { database in
            for key in keys {
                try database.execute(sql: "DELETE FROM session WHERE key = ?", arguments: ["\(key.original)"])
            }
            for session in sessions { try Self.put(session, into: database) }
        }
    }

    private static func put(_ entry: JournaledMigration, into database: Database) throws {
        try database.cachedStatement(sql: "INSERT OR REPLACE INTO migration VALUES (?, ?)")
            .execute(arguments: [Int64(entry.id), entry.text])
    }

    private static func put(_ session: Session, into database: Database) throws {
        let key = "\(session.key.original)"
        if session.isIdle {
            try database.cachedStatement(sql: "DELETE FROM session WHERE key = ?").execute(arguments: [key])
        } else {
            try database.cachedStatement(sql: "INSERT OR REPLACE INTO session VALUES (?, ?)")
                .execute(arguments: [key, SessionDocument(session).text])
        }
    }

    func access<Result>(_ body: (Database) throws -> Result) throws(JournalError) -> Result {
        do {
            return try database.write(body)
        } catch {
            hasFailed = true
            throw JournalError(path: database.path, reason: "\(error)")
        }
    }
}

/// The journal cannot be read or written.
package struct JournalError: Error, Hashable, Sendable, CustomStringConvertible {
    package var path: String
    var reason: String

    package var description: String {
        "The journal \(path) cannot be used (\(reason)): make the state directory writable, or name another."
    }
}

extension FourTuple {
    fileprivate var document: [String] { ["\(source)", "\(destination)"] }

    fileprivate init?(document: [String]) {
        guard document.count == 2, let source = Endpoint(document[0]), let destination = Endpoint(document[1]) else {
            return nil
        }
        self.init(source: source, destination: destination)
    }
}

extension ConnectionDocument {
    package init(_ connection: LocatedConnection) {
        clientSide = connection.clientSide.document
        serverSide = connection.serverSide.document
        phase = connection.phase
        probePort = connection.probePort
    }

    var connection: LocatedConnection? {
        guard let client = FourTuple(document: clientSide), let server = FourTuple(document: serverSide) else {
            return nil
        }
        var connection = LocatedConnection(clientSide: client, serverSide: server, phase: phase)
        connection.probePort = probePort
        return connection
    }
}

extension SessionDocument {
    package init(_ session: Session) {
        id = session.id
        client = session.key.client.map { "\($0)" } ?? SessionKey.everyClient
        clientPort = session.key.clientPort
        home = "\(session.key.home)"
        host = session.binding.map { "\($0.host)" }
        datapath = session.binding?.datapath.rawValue
        sourcePort = session.binding?.sourcePort
        yields = session.yields ? true : nil
        transits = session.transits.map { tuple, standing in
            TransitDocument(
                source: "\(tuple.source)", destination: "\(tuple.destination)", transit: standing.transit.name,
                host: "\(standing.host)", lifetime: standing.lifetime, migration: standing.migration,
                sourcePort: standing.sourcePort)
        }
    }

    /// The session, or nil when the document is not one of ours.
    package var session: Session? {
        let client = IPAddress(self.client)
        guard client != nil || self.client == SessionKey.everyClient, let home = Endpoint(home) else {
            return nil
        }
        var session = Session(key: SessionKey(client: client, clientPort: clientPort, home: home), id: id)
        if let host, let datapath {
            guard let host = Endpoint(host), let datapath = Datapath(rawValue: datapath) else { return nil }
            session.binding = Binding(host: host, datapath: datapath, sourcePort: sourcePort)
            session.yields = yields ?? false
        }
        if transits.isEmpty { return session }
        for entry in transits {
            guard let tuple = FourTuple(document: [entry.source, entry.destination]), let host = Endpoint(entry.host),
                let transit = Transit(name: entry.transit)
            else { return nil }
            session.transits[tuple] = StandingTransit(
                transit: transit, host: host, lifetime: entry.lifetime, migration: entry.migration,
                sourcePort: entry.sourcePort)
        }
        return session
    }
}

extension Transit {
    fileprivate var name: String {
        switch self {
        case .frozen: "frozen"
        case .awaitingSYN: "awaitingSYN"
        case .guarded: "guarded"
        case .trailing: "trailing"
        }
    }

    fileprivate init?(name: String) {
        let all: [Transit] = [.frozen, .awaitingSYN, .guarded, .trailing]
        guard let transit = all.first(where: { $0.name == name }) else { return nil }
        self = transit
    }
}

/// Endpoints of IPv6 that were read from text, since a journal names the same few homes and hosts again and again.
package struct EndpointTexts {
    private var known: [String: Endpoint] = [:]

    package init() {}

    mutating func endpoint(_ text: String) -> Endpoint? {
        if let endpoint = known[text] { return endpoint }
        guard let endpoint = Endpoint(text) else { return nil }
        known[text] = endpoint
        return endpoint
    }
}
