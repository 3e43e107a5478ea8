// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Daemon
import Foundation
import Migration
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

    private let redis = "[[service]]\nname = \"redis\"\nhomes = [\"192.0.2.1:6379\"]\nhosts = [\"192.0.2.2\"]\n"

    @Test func `services and hooks are read`() throws {
        let configuration = try Configuration(
            toml: redis + "clients = [\"198.51.100.0/24\"]\nrate = 2.5\ncallers = [\"root\", 7, \"@0\"]\n"
                + "readers = [\"9\"]\n[[hook]]\non = \"prepare\"\nservice = \"redis\"\nrun = [\"/bin/true\", \"x\"]\n"
                + "[[hook]]\non = \"failed\"\npost = \"https://192.0.2.7/hook\"", path: "x")
        let service = try #require(configuration.policy.service(named: "redis"))
        #expect(service.rate == 2.5)
        #expect(service.callers == CallerSet(users: [0, 7], groups: [0]))
        #expect(service.readers == CallerSet(users: [9]))
        #expect(service.clients.map(\.description) == ["198.51.100.0/24"])
        #expect(configuration.hooks.map(\.point) == [.prepare, .failed])
        #expect(configuration.hooks.map(\.service) == ["redis", nil])
    }

    @Test func `webhooks are read`() throws {
        let configuration = try Configuration(
            toml: "[[webhook]]\nname = \"a\"\npost = \"http://192.0.2.7/a\"\n" + redis
                + "[[webhook]]\nname = \"b\"\npost = \"https://[2001:db8::7]/b\"\nservice = \"redis\"\n"
                + "kinds = [\"drain.finished\"]\nbatch = 1\ntimeout = 0.5\nlongest-pause = 4", path: "x")
        #expect(configuration.webhooks.map(\.name) == ["a", "b"])
        #expect(
            configuration.webhooks.map(\.filter) == [
                EventFilter(), EventFilter(service: "redis", kinds: [.drainFinished]),
            ])
        #expect(configuration.webhooks.map(\.batch) == [100, 1])
        let pauses = (1...6).map { configuration.webhooks[1].pause(after: $0) }
        #expect(pauses == [0.5, 1, 2, 4, 4, 4])
        #expect(configuration.webhooks[0].pause(after: 1_000_000) == 60)
    }

    @Test func `the example's services, hooks and webhooks can be used as they stand`() throws {
        let path = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../docs/nfqmigd.toml")
        let text = try String(contentsOf: path, encoding: .utf8)
        let examples = text.split(separator: "\n").filter { $0.hasPrefix("#    ") }.map { $0.dropFirst(5) }
        let configuration = try Configuration(
            toml: examples.joined(separator: "\n").replacing("\"@operators\"", with: "\"@0\""), path: "x")
        #expect(configuration.policy.services.count == 1)
        #expect(configuration.hooks.count == 2)
        #expect(configuration.webhooks.count == 1)
    }

    @Test(arguments: [
        ("name = \"redis\"\nhomes = [\"192.0.2.1:1\"]\nhosts = []", "service \"redis\" is there twice"),
        ("name = \"x\"\nhomes = [\"192.0.2.1:1\"]\nhosts = [\"192.0.2.1/24\"]", "service \"x\": hosts names"),
        ("name = \"x\"\nhomes = [\"192.0.2.1:1\"]\nhosts = []\ncolour = 1", "service \"x\": colour is not a setting"),
        ("name = \"x\"\nhomes = [\"192.0.2.1:1\"]\nhosts = []\nrate = 0", "service \"x\": rate must be a number"),
        ("name = \"x\"\nhomes = [\"192.0.2.1:1\"]\nhosts = []\nclients = [\"192.0.2.1/8\"]", "clients names"),
        (
            "name = \"x\"\nhomes = [\"192.0.2.1:1\"]\nhosts = []\ncallers = [\"no such user\"]",
            "callers names \"no such user\", a user"
        ),
        (
            "name = \"x\"\nhomes = [\"192.0.2.1:1\"]\nhosts = []\nreaders = [\"@no such group\"]",
            "readers names \"@no such group\", a group"
        ),
    ])
    func `a mistake in a service is named with the service and the key`(text: String, clue: String) {
        #expect { try Configuration(toml: redis + "[[service]]\n" + text, path: "x") } throws: { error in
            "\(error)".contains(clue) && "\(error)".hasSuffix(".")
        }
    }

    @Test(arguments: [
        "nonsense = 1", "queues = 0", "queues = 65", "queues = \"2\"", "datapath = \"tape\"", "socket = \"relative\"",
        "mark = 0", "mark = 4294967296", "guard-proven = -1", "check-host = 1", "queues = ", "= 3",
        "first-queue = 65535\nqueues = 2", "service = 1", "hook = [1]", "[[service]]",
        "[[service]]\nname = \"x\"", "[[service]]\nname = \"x\"\nhomes = []\nhosts = []",
        "[[service]]\nname = \"x\"\nhomes = [\"192.0.2.1\"]\nhosts = []", "[[hook]]", "[[hook]]\non = \"prepare\"",
        "[[hook]]\non = \"never\"\nrun = [\"/bin/true\"]", "[[hook]]\non = \"prepare\"\nrun = [\"true\"]",
        "[[hook]]\non = \"prepare\"\npost = \"ftp://x/\"",
        "[[hook]]\non = \"prepare\"\nrun = [\"/bin/true\"]\npost = \"http://x/\"",
        "[[hook]]\non = \"prepare\"\nrun = [\"/bin/true\"]\nservice = \"x\"",
        "[[hook]]\non = \"prepare\"\nrun = [\"/bin/true\"]\ntimeout = 0", "webhook = 1", "[[webhook]]",
        "[[webhook]]\nname = \"x\"", "[[webhook]]\nname = \"x y\"\npost = \"http://x/\"",
        "[[webhook]]\nname = \"x\"\npost = \"x\"", "[[webhook]]\nname = \"x\"\npost = \"http:///x\"",
        "[[webhook]]\nname = \"x\"\npost = \"http://x/\"\nservice = \"x\"",
        "[[webhook]]\nname = \"x\"\npost = \"http://x/\"\nkinds = [\"x\"]",
        "[[webhook]]\nname = \"x\"\npost = \"http://x/\"\nbatch = 1.5",
    ])
    func `what makes no sense is refused with the file's name`(text: String) {
        #expect { try Configuration(toml: text, path: "/etc/x.toml") } throws: { error in
            "\(error)".contains("/etc/x.toml") && "\(error)".hasSuffix(".")
        }
    }
}
