// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Glibc

/// Writes at once, so that whoever reads along sees it; ends the program quietly when nobody does any more.
func emit(_ text: String) {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
        let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(STDOUT_FILENO, $0.baseAddress, $0.count) }
        if count < 0 {
            if errno == EINTR { continue }
            Foundation.exit(0)
        }
        rest = rest.dropFirst(count)
    }
}

/// Whether standard output is a terminal.
var isOnTerminal: Bool { isatty(STDOUT_FILENO) == 1 }

/// Prints columns, each as wide as its widest cell.
func printTable(_ header: [String], _ rows: [[String]]) { emit(table(header, rows)) }

/// Columns, each as wide as its widest cell.
func table(_ header: [String], _ rows: [[String]]) -> String {
    let widths = header.indices.map { column in ([header] + rows).map { $0[column].count }.max() ?? 0 }
    return ([header] + rows).map { row in
        let cells = row.enumerated().map { index, cell in
            index == row.count - 1 ? cell : cell.padding(toLength: widths[index], withPad: " ", startingAt: 0)
        }
        return cells.joined(separator: "  ") + "\n"
    }.joined()
}

extension SessionList {
    static let header = ["SESSION", "CLIENT", "HOME", "HOST", "SCOPE", "DATAPATH", "GUARDS", "MIGRATION"]

    var rows: [[String]] {
        sessions.map {
            [
                "\($0.id)", $0.client, $0.home, $0.host == $0.home ? "home" : $0.host, $0.scope, $0.datapath ?? "-",
                "\($0.transits)", $0.migration.map(String.init) ?? "-",
            ]
        }
    }
}

extension Event {
    /// One line for a person.
    var line: String {
        let clock = Date(timeIntervalSince1970: at).formatted(
            .iso8601.year().month().day().time(includingFractionalSeconds: true).timeZone(separator: .omitted))
        let subject = [migration.map { "migration \($0)" }, drain.map { "drain \($0)" }].compactMap { $0 }
        return "\(clock)  \(id)  \(subject.joined(separator: ", ")): \(step)\(detail.map { ": " + $0 } ?? "")\n"
    }

    /// One line for a program.
    var jsonLine: String {
        get throws {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
            return String(decoding: try encoder.encode(self), as: UTF8.self) + "\n"
        }
    }
}
