// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Foundation
import Testing

/// The documents that people read say what the code says.
@Suite struct DocumentTests {
    private func text(_ path: String) throws -> String {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../")
        return try String(contentsOf: root.appending(path: path), encoding: .utf8)
    }

    @Test func `the README lists every exit code once`() throws {
        let rows = try text("README.md").split(separator: "\n").filter { $0.hasPrefix("| ") }
        for code in ExitCode.allCases {
            #expect(rows.filter { $0.hasPrefix("| \(code.rawValue) |") }.count == 1, "exit code \(code.rawValue)")
        }
    }

    @Test func `the control interface's page lists every kind of refusal with its status and exit code`() throws {
        let rows = try text("docs/control-interface.md").split(separator: "\n").filter { $0.hasPrefix("| `urn:") }
        for kind in ProblemKind.allCases {
            let matching = rows.filter { $0.contains("\(kind.rawValue)`") }
            #expect(matching.count == 1, "\(kind.rawValue)")
            #expect(
                matching.first?.hasSuffix("| \(kind.status) | \(kind.exitCode.rawValue) |") == true, "\(kind.rawValue)")
        }
    }

    @Test func `a report's fields are those that the page names`() throws {
        var report = MigrationReport(
            id: 1, session: 1, client: "192.0.2.9", home: "198.51.100.1:80", scope: "client", datapath: "kernel",
            passive: false, from: "198.51.100.1:80", to: "198.51.100.2:80", requestedAt: 1)
        (report.outcome, report.reason, report.exitCode) = ("failed", "why", 1)
        (report.switchedAt, report.finishedAt) = (2, 3)
        let object = try JSONSerialization.jsonObject(with: JSONEncoder().encode(report)) as? [String: Any]
        let page = try text("docs/control-interface.md")
        for field in try #require(object).keys { #expect(page.contains("`\(field)`"), "\(field)") }
        #expect(try JSONDecoder().decode(MigrationReport.self, from: JSONEncoder().encode(report)) == report)
    }

    @Test func `an order needs no more than client, home and to-host`() throws {
        let order = try JSONDecoder().decode(
            MigrationOrder.self, from: Data(#"{"client": "192.0.2.9", "from": "198.51.100.1:80"}"#.utf8))
        #expect(order == MigrationOrder(client: "192.0.2.9", from: "198.51.100.1:80", to: nil))
        let byNumber = try JSONDecoder().decode(MigrationOrder.self, from: Data(#"{"session": 7}"#.utf8))
        #expect(byNumber == MigrationOrder(session: 7, to: nil))
    }
}
