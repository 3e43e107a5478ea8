// SPDX-License-Identifier: GPL-3.0-or-later

import ControlInterface
import Daemon
import Foundation
import Testing

@Suite struct StrictDocumentTests {
    private func refusal(_ text: String) -> String? {
        do throws(Problem) {
            _ = try StrictDocument.decode(
                DrainOrder.self, from: Data(text.utf8), expected: "a drain's order: send JSON")
            return nil
        } catch {
            return error.detail
        }
    }

    @Test(arguments: [
        #"{"from": "x", "to": []}"#,
        #" { "to" : [ { "host" : "a" } , { "host" : "b", "weight" : 2 } ] , "from":"from" } "#,
        #"{"from": "x", "to": [], "colour": null, "client": null}"#,
        #"{"from": "{\"to\": [\"to\", \\", "to": [{"host": "\"host\": "}]}"#,
        #"{"from": "x", "to": [], "sessions": [{"client": "c", "home": "h"}, {"home": "h", "client": "c"}]}"#,
    ])
    func `a document of known members is taken`(text: String) {
        #expect(refusal(text) == nil)
    }

    @Test(arguments: [
        (#"{"from": "x", "to": [], "colour": 1}"#, "\"colour\" is not a member"),
        (#"{"from": "x", "to": [{"host": "a"}, {"host": "b", "wieght": 1}]}"#, "\"to[1].wieght\" is not a member"),
        (#"{"from": "x", "to": [], "rate": 1, "from": "x"}"#, "\"from\" is there twice"),
        (#"{"from": "x", "to": [], "\u0066r\u006fm": "x"}"#, "\"from\" is there twice"),
        (#"{"from": "x", "to": [{"host": "a", "host": "a"}]}"#, "\"to[0].host\" is there twice"),
        (#"{"from": "x", "to": [], "rate": null, "rate": 1}"#, "\"rate\" is there twice"),
        (#"{"from": "x", "to": [], "to.host": 1}"#, "\"to.host\" is not a member"),
        (#"{"from": "x", "to": [], "": 1}"#, "\"\" is not a member"),
        (#"{"from": "x", "to": [],}"#, "The body is not a drain's order"),
        (#"{"from": "x", "to": [{"host": "a"} , ]}"#, "The body is not a drain's order"),
        (#"{"from": "x"}"#, "\"to\" is missing"), (#"[]"#, "The body is not a drain's order"), ("", "The body is not"),
    ])
    func `what was not understood is named`(text: String, clue: String) {
        #expect(refusal(text)?.contains(clue) == true, "\(refusal(text) ?? "taken")")
    }

    @Test func `JSON in another encoding is refused`() throws {
        let text = #"{"from": "x", "to": []}"#
        for encoding in [String.Encoding.utf16, .utf16LittleEndian, .utf32] {
            let data = try #require(text.data(using: encoding))
            #expect { try StrictDocument.decode(DrainOrder.self, from: data, expected: "an order: x") } throws: {
                ($0 as? Problem)?.detail.contains("UTF-8") == true
            }
        }
        #expect(throws: Problem.self) {
            try StrictDocument.decode(
                DrainOrder.self, from: Data(#"{"from": ""#.utf8) + [0xc0, 0x80] + Data(#"", "to": []}"#.utf8),
                expected: "an order: x")
        }
    }

    @Test func `JSON that ends anywhere is walked to its end and no further`() {
        let text = Data(#"{"a": [{"b": "\\\""}, {"b": null}], "a": {"c": 1}}"#.utf8)
        #expect(JSONMembers.paths(in: text) == ["a", "a[].b", "a.c"])
        for length in 0..<text.count { _ = JSONMembers.paths(in: text.prefix(length)) }
    }
}
