// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import Testing
import Wire

/// A golden vector: named fields and named packets.
///
/// In a file: `case: name`, then `field: value` lines, then `packet:` lines with nothing behind the colon, each
/// followed by indented octets in hex. `#` begins a remark.
struct Vector: CustomTestStringConvertible, Sendable {
    let name: String
    var fields: [String: String] = [:]
    var packets: [String: [UInt8]] = [:]

    var testDescription: String { name }

    subscript(field: String) -> String { fields[field] ?? "" }

    func packet(_ name: String) throws -> [UInt8] { try #require(packets[name]) }

    func endpoint(_ field: String) throws -> Endpoint { try #require(Endpoint(self[field])) }

    func tuple(_ field: String) throws -> FourTuple {
        let ends = self[field].split(separator: " ").compactMap { Endpoint(String($0)) }
        try #require(ends.count == 2)
        return FourTuple(source: ends[0], destination: ends[1])
    }

    /// The vectors of `Tests/Vectors/<file>`; a file that cannot be read fails the test as an empty list would not.
    static func all(_ file: String, from path: String = #filePath) -> [Vector] {
        let folder = URL(fileURLWithPath: path).deletingLastPathComponent().deletingLastPathComponent()
        guard let text = try? String(contentsOf: folder.appending(path: "Vectors/\(file)"), encoding: .utf8)
        else { fatalError("No vectors in Tests/Vectors/\(file); make them with Tests/Vectors/generate.py.") }
        var vectors: [Vector] = []
        var packet = ""
        for line in text.split(separator: "\n") {
            let words = line.prefix { $0 != "#" }
            if words.hasPrefix(" ") {
                let octets = words.split(separator: " ").map { UInt8($0, radix: 16) ?? 0 }
                vectors[vectors.count - 1].packets[packet, default: []] += octets
            } else if let colon = words.firstIndex(of: ":") {
                let key = String(words[..<colon])
                let value = words[words.index(after: colon)...].trimmingCharacters(in: .whitespaces)
                if key == "case" {
                    vectors.append(Vector(name: value))
                } else if value.isEmpty {
                    packet = key
                } else {
                    vectors[vectors.count - 1].fields[key] = value
                }
            }
        }
        return vectors
    }
}

/// Octets in lines of sixteen, so that a difference is seen where it is.
func dump(_ octets: [UInt8]) -> String {
    stride(from: 0, to: octets.count, by: 16).map { start in
        octets[start..<min(start + 16, octets.count)].map { String(Int($0) + 0x100, radix: 16).dropFirst() }
            .joined(separator: " ")
    }.joined(separator: "\n")
}
