// SPDX-License-Identifier: GPL-3.0-or-later

import Daemon
import Foundation
import Testing

@Suite struct ConfigurationTests {
    @Test func `an empty file is all defaults`() throws {
        #expect(try Configuration(toml: "", path: "x") == Configuration())
    }

    @Test func `the example file sets nothing and parses with every line switched on`() throws {
        let path = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../docs/nfqmigd.toml")
        let text = try String(contentsOf: path, encoding: .utf8)
        #expect(try Configuration(toml: text, path: "x") == Configuration())
        let switchedOn = text.split(separator: "\n").map { line in
            line.hasPrefix("#") && !line.hasPrefix("# ") ? line.dropFirst() : line
        }.joined(separator: "\n")
        #expect(switchedOn.contains("\nmark = "))
        #expect(try Configuration(toml: switchedOn, path: "x") == Configuration())
    }

    @Test func `values take the place of defaults`() throws {
        let configuration = try Configuration(
            toml: "datapath = \"queue\"\nqueues = 4\nguard-proven = 2\ncheck-host = false\nsocket = \"/run/x\"",
            path: "x")
        #expect(configuration.datapath == .queue)
        #expect(configuration.queues == 4)
        #expect(configuration.lifetimes.guardProven == 2)
        #expect(!configuration.checkHost)
        #expect(configuration.socket == "/run/x")
    }

    @Test(arguments: [
        "nonsense = 1", "queues = 0", "queues = 65", "queues = \"2\"", "datapath = \"tape\"", "socket = \"relative\"",
        "mark = 0", "mark = 4294967296", "guard-proven = -1", "check-host = 1", "queues = ", "= 3",
        "first-queue = 65535\nqueues = 2",
    ])
    func `what makes no sense is refused with the file's name`(text: String) {
        #expect { try Configuration(toml: text, path: "/etc/x.toml") } throws: { error in
            "\(error)".contains("/etc/x.toml") && "\(error)".hasSuffix(".")
        }
    }
}
