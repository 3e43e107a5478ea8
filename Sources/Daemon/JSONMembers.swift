// SPDX-License-Identifier: GPL-3.0-or-later

package import Foundation

/// The names in JSON text, read without building anything of its values. The text has to be JSON in UTF-8.
package struct JSONMembers {
    /// What a strict reader does not take.
    package enum Flaw: Hashable, Sendable {
        /// An object has this member twice.
        case repeated(String)
        /// This member, whose value is not null, is none of those that are known.
        case unknown(String)
        /// Behind a comma comes an end, which Foundation's decoder lets pass.
        case strayComma
    }

    /// One object or array around the present place.
    private struct Container {
        var isObject: Bool
        /// Where it is; the elements of an array are not told apart.
        var path: String
        /// An object's members so far, and the one whose value is here.
        var names: Set<String> = []
        var name = ""
        /// The number of the element that is here.
        var index = 0

        func path(of name: String) -> String { path.isEmpty ? name : path + "." + name }

        /// The path of what is here.
        var pathOfValue: String { isObject ? path(of: name) : path + "[]" }
    }

    private let json: [UInt8]
    private var containers: [Container] = []
    private var hasStrayComma = false

    /// The paths of all members, such as `sessions[].client`.
    package static func paths(in json: Data) -> Set<String> {
        var paths: Set<String> = []
        var members = JSONMembers(json: Array(json))
        _ = members.walk { path, _, _ in
            paths.insert(path)
            return false
        }
        return paths
    }

    /// The first flaw, with its place, such as `sessions[3].cleint`; nil when there is none.
    package static func flaw(in json: Data, knowing known: Set<String>) -> Flaw? {
        var members = JSONMembers(json: Array(json))
        var isRepeated = false
        let place = members.walk { path, isNull, isKnownAlready in
            isRepeated = isKnownAlready
            return isKnownAlready || !isNull && !known.contains(path)
        }
        if members.hasStrayComma { return .strayComma }
        return place.map { isRepeated ? .repeated($0) : .unknown($0) }
    }

    /// Calls `stops` for each member with its path, whether its value is null, and whether its object had it before, until it
    /// says so. Returns the place where it did.
    private mutating func walk(_ stops: (String, Bool, Bool) -> Bool) -> String? {
        var isNameNext = false
        var isBehindComma = false
        var index = 0
        while index < json.count {
            let scalar = UnicodeScalar(json[index])
            if isBehindComma, scalar == "}" || scalar == "]" {
                hasStrayComma = true
                return place
            }
            if scalar != " ", scalar != "\n", scalar != "\r", scalar != "\t" { isBehindComma = scalar == "," }
            switch scalar {
            case "{":
                containers.append(Container(isObject: true, path: containers.last?.pathOfValue ?? ""))
                isNameNext = true
            case "[":
                containers.append(Container(isObject: false, path: containers.last?.pathOfValue ?? ""))
                isNameNext = false
            case "}", "]":
                _ = containers.popLast()
                isNameNext = false
            case "," where !containers.isEmpty:
                isNameNext = containers[containers.count - 1].isObject
                containers[containers.count - 1].index += 1
            case "\"":
                let start = index
                index += 1
                while index < json.count, json[index] != UInt8(ascii: "\"") {
                    index += json[index] == UInt8(ascii: "\\") ? 2 : 1
                }
                guard isNameNext, index < json.count, !containers.isEmpty else { break }
                isNameNext = false
                let name = text(json[start...index])
                let last = containers.count - 1
                containers[last].name = name
                let isNew = containers[last].names.insert(name).inserted
                if stops(containers[last].pathOfValue, isNull(behind: index), !isNew) { return place }
            default: break
            }
            index += 1
        }
        return nil
    }

    /// A string with its quotes. With escapes `"t\u006f"` is "to".
    private func text(_ quoted: ArraySlice<UInt8>) -> String {
        guard quoted.contains(UInt8(ascii: "\\")) else {
            return String(decoding: quoted.dropFirst().dropLast(), as: UTF8.self)
        }
        return (try? JSONDecoder().decode(String.self, from: Data(quoted))) ?? ""
    }

    /// Whether the value of the member whose name ends at `end` is null.
    private func isNull(behind end: Int) -> Bool {
        let value = json[(end + 1)...].first { ![0x20, 0x09, 0x0a, 0x0d, UInt8(ascii: ":")].contains($0) }
        return value == UInt8(ascii: "n")
    }

    private var place: String {
        containers.reduce("") { place, container in
            guard container.isObject else { return place + "[\(container.index)]" }
            return place.isEmpty ? container.name : place + "." + container.name
        }
    }

    private init(json: [UInt8]) { self.json = json }
}
