// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Daemon
import Foundation
import Migration
import Testing
import Wire

@Suite struct JournalTests {
    private func withDirectory(_ body: (String) throws -> Void) throws {
        let directory = FileManager.default.temporaryDirectory.appending(path: "nfqmigd-journal-\(UUID())").path
        defer { try? FileManager.default.removeItem(atPath: directory) }
        try body(directory)
    }

    private func session() throws -> Session {
        let client = try #require(IPAddress("2001:db8::9"))
        let home = try #require(Endpoint("[2001:db8:1::1]:80"))
        let host = try #require(Endpoint("[2001:db8:1::2]:8080"))
        var session = Session(key: SessionKey(client: client, clientPort: 40000, home: home), id: 5)
        session.binding = Binding(host: host, datapath: .queue, sourcePort: 50000)
        session.yields = true
        let tuple = FourTuple(source: home, destination: Endpoint(address: client, port: 40000))
        session.transits[tuple] = StandingTransit(transit: .guarded, host: home, lifetime: 60, migration: 7)
        session.transits[tuple.reversed] = StandingTransit(
            transit: .awaitingSYN, host: home, lifetime: 120, migration: 7)
        let left = FourTuple(source: Endpoint(address: client, port: 39999), destination: home)
        session.transits[left] = StandingTransit(
            transit: .trailing, host: host, lifetime: 120, migration: 0, sourcePort: 50001)
        return session
    }

    @Test func `a session comes back as it was written`() throws {
        try withDirectory { directory in
            let session = try session()
            try SQLiteJournal(directory: directory).write(session)
            #expect(try SQLiteJournal(directory: directory).load().sessions == [session])
        }
    }

    @Test func `a service's session comes back beside its clients'`() throws {
        try withDirectory { directory in
            let one = try session()
            var service = Session(key: SessionKey(client: nil, clientPort: nil, home: one.key.home))
            service.binding = one.binding
            let journal = try SQLiteJournal(directory: directory)
            try journal.write(one)
            try journal.write(service)
            #expect(try Set(journal.load().sessions) == [one, service])
        }
    }

    @Test func `a plain document is scanned to what a decoder reads, and any other is left to the decoder`() throws {
        var texts = EndpointTexts()
        let home = try #require(Endpoint("198.51.100.200:8443"))
        let narrow = Session(
            key: SessionKey(client: try #require(IPAddress("192.0.2.1")), clientPort: 1, home: home), id: 0,
            binding: Binding(host: try #require(Endpoint("203.0.113.0:65535")), datapath: .queue))
        let sessions = try [
            session(), Session(key: session().key, id: 6), narrow,
            Session(key: SessionKey(client: nil, clientPort: nil, home: session().key.home), id: UInt64.max),
        ]
        for var session in sessions {
            session.transits = [:]
            if session.yields {
                let rare = String(decoding: try JSONEncoder().encode(SessionDocument(session)), as: UTF8.self)
                #expect(Session(scanning: rare, &texts) == nil, "\(rare)")
            }
            session.yields = false
            for datapath in Datapath.allCases {
                session.binding?.datapath = datapath
                let document = SessionDocument(session)
                let text = String(decoding: try JSONEncoder().encode(document), as: UTF8.self)
                #expect(Session(scanning: text, &texts) == session && document.session == session)
            }
        }
        let plain = #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:80","transits":[]}"#
        #expect(Session(scanning: plain, &texts) != nil)
        for other in [
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:80","transits":[],"new":1}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:80","transits":[],"yields":true}"#,
            #"{"id":1,"client":"192.0.2\u002e1","home":"198.51.100.1:80","transits":[]}"#,
            #"{"id":-1,"client":"192.0.2.1","home":"198.51.100.1:80","transits":[]}"#,
            #"{"id":18446744073709551616,"client":"192.0.2.1","home":"198.51.100.1:80","transits":[]}"#,
            #"{"id":1,"client":"192.0.2.1","clientPort":65536,"home":"198.51.100.1:80","transits":[]}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:80","transits":[{}]}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:80"}"#,
            #"{"id":1,"client":"192.0.2.256","home":"198.51.100.1:80","transits":[]}"#,
            #"{"id":1,"client":"192.0.02.1","home":"198.51.100.1:80","transits":[]}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:65536","transits":[]}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:08","transits":[]}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1:80 ","transits":[]}"#,
            #"{"id":1,"client":"192.0.2.1","home":"198.51.100.1","transits":[]}"#,
            plain + "x", String(plain.dropLast()), String(plain.dropLast(20)), "", "{", "null",
        ] {
            #expect(Session(scanning: other, &texts) == nil, "\(other)")
        }
    }

    @Test func `addresses of IPv6 are scanned as they are read everywhere else`() throws {
        var texts = EndpointTexts()
        func document(_ client: String) -> String {
            #"{"id":1,"client":"\#(client)","clientPort":1,"home":"[2001:db8::1]:80","transits":[]}"#
        }
        for _ in 0..<2000 {
            func number() -> UInt64 {
                (0..<4).reduce(0) { value, _ in value << 16 | [0, 0, UInt64.random(in: 0...0xffff)].randomElement()! }
            }
            let address = IPAddress.v6(IPv6Address(high: number(), low: number()))
            #expect(Session(scanning: document("\(address)"), &texts)?.key.client == address)
        }
        for text in [
            "::", "::1", "1::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8", "0001::000f", "::192.0.2.1",
            "ABCD::",
            ":::", ":1", "1:", "1:::2", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2:3:4:5:6:7:8", "12345::",
            "g::", "",
            "1::2:", "::%1", "[::]",
        ] { #expect(Session(scanning: document(text), &texts)?.key.client == IPAddress(text), "\(text)") }
    }

    @Test func `an orderly end is found once`() throws {
        try withDirectory { directory in
            let end = OrderlyEnd(boot: "b", network: .max, generation: .max)
            let journal = try SQLiteJournal(directory: directory)
            #expect(try journal.takeOrderlyEnd() == nil)
            try journal.write(end)
            try journal.write(end)
            let next = try SQLiteJournal(directory: directory)
            #expect(try next.takeOrderlyEnd() == end)
            #expect(try next.takeOrderlyEnd() == nil)
            #expect(try SQLiteJournal(directory: directory).takeOrderlyEnd() == nil)
        }
    }

    @Test func `what is written without an encoder is what a decoder reads`() throws {
        func read<Document: Decodable>(_ text: String, _: Document.Type) throws -> Document {
            try JSONDecoder().decode(Document.self, from: Data(text.utf8))
        }
        let client = try #require(IPAddress("192.0.2.1"))
        let home = try #require(Endpoint("198.51.100.1:80"))
        let plain = Session(key: SessionKey(client: client, clientPort: nil, home: home), id: UInt64.max)
        let service = Session(key: SessionKey(client: nil, clientPort: nil, home: home))
        for session in [try session(), plain, service] {
            let document = SessionDocument(session)
            #expect(try read(document.text, SessionDocument.self) == document)
            for stage in [JournaledMigration.Stage.switching, .resetting] {
                var entry = JournaledMigration(
                    id: 0, stage: stage, before: document, to: stage == .switching ? "\(home)" : nil, datapath: "queue",
                    passive: stage == .switching, fromHost: "\(home)", connections: [])
                #expect(try read(entry.text, JournaledMigration.self) == entry)
                let tuple = FourTuple(source: Endpoint(address: client, port: 40_000), destination: home)
                var connection = LocatedConnection(clientSide: tuple, serverSide: tuple.reversed, phase: .halfOpen)
                entry.connections = [ConnectionDocument(connection)]
                connection.probePort = 9
                entry.connections.append(ConnectionDocument(connection))
                entry.member = JournaledMember(drain: 40, place: 0, host: 10, isReturning: true)
                #expect(try read(entry.text, JournaledMigration.self) == entry)
            }
        }
        let awkward = "\"\\\u{0}\u{1f}\n\u{7f}é→\u{1F600}/"
        for result in [Drain.Result.moved(isProven: true), .moved(isProven: false), .gone, .failed(reason: awkward)] {
            for isBack in [nil, true, false] {
                let turn = JournaledTurn(
                    drain: 1, place: 65_535, host: 0, result: result, session: 5, isAwaited: isBack ?? true,
                    isBack: isBack)
                #expect(try read(turn.text, JournaledTurn.self) == turn)
            }
        }
    }

    @Test func `a session that follows its client is there once, under its new port`() throws {
        try withDirectory { directory in
            let journal = try SQLiteJournal(directory: directory)
            let session = try session()
            let next = session.following(to: 40001, tail: 120)
            try journal.write(session)
            try journal.write([next], insteadOf: [session.key])
            #expect(try journal.load().sessions == [next])
            #expect(next.id == session.id && next.key.clientPort == 40001)
        }
    }

    @Test func `an idle session is forgotten`() throws {
        try withDirectory { directory in
            let journal = try SQLiteJournal(directory: directory)
            let session = try session()
            try journal.write(session)
            try journal.write(Session(key: session.key))
            #expect(try journal.load().sessions.isEmpty)
        }
    }

    @Test func `migration numbers are never given out twice`() throws {
        try withDirectory { directory in
            let session = try session()
            let entry = JournaledMigration(
                id: 41, stage: .resetting, before: SessionDocument(session), to: nil, datapath: "kernel",
                passive: false, fromHost: "[2001:db8:1::1]:80", connections: [])
            let journal = try SQLiteJournal(directory: directory)
            try journal.write(entry, session)
            #expect(try journal.load().migrations == [entry])
            try journal.forgetMigration(41)
            let contents = try SQLiteJournal(directory: directory).load()
            #expect(contents.migrations.isEmpty)
            #expect(contents.lastMigration == 41)
        }
    }

    @Test func `a lifetime comes back as it was written, until it is forgotten`() throws {
        try withDirectory { directory in
            let key = try session().key
            let later = StandingLifetime(
                migration: 9, session: key, endsAt: 1_800_000_000.5, then: Endpoint("[2001:db8:1::3]:80"),
                confirmBy: nil)
            let earlier = StandingLifetime(migration: 8, session: key, endsAt: nil, then: nil, confirmBy: 1_700_000_000)
            let other = StandingLifetime(
                migration: 7, session: SessionKey(client: key.client, clientPort: nil, home: key.home), endsAt: 1,
                then: nil, confirmBy: 2)
            let journal = try SQLiteJournal(directory: directory)
            for each in [earlier, later, other] { try journal.write(each) }
            #expect(try SQLiteJournal(directory: directory).lifetimes() == [other, earlier, later])
            try journal.forgetLifetime(8)
            #expect(try journal.lifetimes() == [other, later])
            try journal.forgetLifetime(9)
            #expect(try journal.lifetimes() == [other])
        }
    }

    @Test func `a webhook's position comes back, until it is configured no longer`() throws {
        try withDirectory { directory in
            let journal = try SQLiteJournal(directory: directory)
            #expect(try journal.positions().isEmpty)
            try journal.setPosition(of: "one", to: 0)
            try journal.setPosition(of: "two", to: 41)
            try journal.setPosition(of: "two", to: 42)
            #expect(try SQLiteJournal(directory: directory).positions() == ["one": 0, "two": 42])
            try journal.forgetPositions(except: ["one", "three"])
            #expect(try journal.positions() == ["one": 0])
        }
    }

    @Test func `a drain comes back with its progress and turns, and its report when it has ended`() throws {
        try withDirectory { directory in
            let session = try session()
            let beginning = JournaledDrain.Beginning(
                order: DrainOrder(from: "2001:db8:1::2", to: [DrainHost(host: "home")]), user: 1, group: 2, process: 3,
                requestedAt: 1_700_000_000.5, members: [SessionDocument(session)])
            var turn = JournaledTurn(
                drain: 50, place: 0, host: 0, result: .failed(reason: "No."), session: 5, isAwaited: true)
            var progress = DrainProgress()
            let journal = try SQLiteJournal(directory: directory)
            try journal.write(beginning, of: 50)
            #expect(try journal.drains().map(\.progress) == [progress])
            (progress.isPaused, progress.stopReason) = (true, "Reset.")
            try journal.write(progress, of: 50)
            var batch = JournalBatch()
            batch.turns = [turn]
            try journal.write(batch)
            turn.isBack = false
            batch.turns = [turn]
            try journal.write(batch)
            let reopened = try SQLiteJournal(directory: directory)
            let drain = try #require(try reopened.drains().first)
            #expect(drain.id == 50 && drain.beginning == beginning)
            #expect(drain.progress == progress && drain.turns == [turn])
            // Migrations and drains are numbered together.
            #expect(try reopened.load().lastMigration == 50)

            let report = DrainReport(
                id: 50, from: "2001:db8:1::2", to: [], state: "finished", total: 1, requestedAt: 1)
            try reopened.write(report, of: 50)
            #expect(try reopened.drains().isEmpty)
            #expect(try SQLiteJournal(directory: directory).endedDrains() == [report])
            try reopened.forgetDrain(50)
            #expect(try reopened.endedDrains().isEmpty)
        }
    }

    @Test func `a migration says of which drain it is`() throws {
        let session = try session()
        var entry = JournaledMigration(
            id: 41, stage: .resetting, before: SessionDocument(session), to: nil, datapath: "kernel", passive: false,
            fromHost: "[2001:db8:1::1]:80", connections: [])
        let alone = try JSONDecoder().decode(JournaledMigration.self, from: JSONEncoder().encode(entry))
        #expect(alone == entry && alone.member == nil)
        entry.member = JournaledMember(drain: 40, place: 7, host: 1, isReturning: false)
        #expect(try JSONDecoder().decode(JournaledMigration.self, from: JSONEncoder().encode(entry)) == entry)
    }

    @Test func `a directory that cannot be used is named`() {
        #expect { try SQLiteJournal(directory: "/proc/nowhere") } throws: { "\($0)".contains("/proc/nowhere") }
    }
}
