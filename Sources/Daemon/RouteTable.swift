// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
internal import Foundation

/// A request's target (RFC 9112 section 3.2.1), taken apart and percent-decoded.
package struct RequestTarget: Hashable, Sendable {
    /// The path's parts; an empty path has none.
    package var path: [String]
    package var query: [String: String]

    /// Throws a `Problem` for what is no path with a query, and for a parameter that is there twice.
    package init(_ text: String) throws(Problem) {
        var text = text[...]
        // The absolute form, as to a proxy: who is asked is known.
        if text.prefix(7).lowercased() == "http://" {
            let rest = text.dropFirst(7)
            text = rest.firstIndex(of: "/").map { rest[$0...] } ?? "/"
        }
        guard text.hasPrefix("/") else {
            throw Problem(kind: .malformedRequest, detail: "The request's target has to be a path: begin it with /.")
        }
        let parts = text.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        path = []
        for part in parts[0].split(separator: "/", omittingEmptySubsequences: false).dropFirst() {
            path.append(try Self.decode(part))
        }
        if path == [""] { path = [] }
        query = [:]
        guard parts.count == 2 else { return }
        for pair in parts[1].split(separator: "&") {
            let words = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = try Self.decode(words[0])
            guard query.updateValue(words.count == 2 ? try Self.decode(words[1]) : "", forKey: name) == nil else {
                throw Problem(
                    kind: .malformedRequest, detail: "The query's \(quoted(name)) is there twice: give it once.")
            }
        }
    }

    private static func decode(_ text: Substring) throws(Problem) -> String {
        guard let decoded = text.removingPercentEncoding, !decoded.utf8.contains(0) else {
            throw Problem(
                kind: .malformedRequest, detail: "\(quoted(String(text))) is not percent-encoded UTF-8.")
        }
        return decoded
    }
}

/// What somebody else has written, fit for one sentence: bounded, and without control characters.
package func quoted(_ text: String) -> String {
    let printable = text.unicodeScalars.prefix(64).map { scalar -> Character in
        scalar.properties.generalCategory == .control || scalar.properties.generalCategory == .format
            ? "\u{fffd}" : Character(scalar)
    }
    return "\"" + String(printable) + (text.unicodeScalars.count > 64 ? "…" : "") + "\""
}

/// The routes of the control interface, to be found by method and path.
struct RouteTable: Sendable {
    let routes: [ControlRoute]

    enum Match {
        case route(ControlRoute, parameters: [String: String])
        /// The path is there, with these methods only.
        case otherMethods([String])
        case none
    }

    func match(_ method: String, _ path: [String]) -> Match {
        var methods: [String] = []
        for route in routes {
            guard let parameters = Self.parameters(of: path, in: route.path) else { continue }
            if route.method == method { return .route(route, parameters: parameters) }
            methods.append(route.method)
        }
        return methods.isEmpty ? .none : .otherMethods(methods)
    }

    /// What the parts of `path` stand for in a pattern such as `/v1/migrations/:id`; nil when it does not match.
    private static func parameters(of path: [String], in pattern: String) -> [String: String]? {
        let parts = pattern.split(separator: "/")
        guard parts.count == path.count else { return nil }
        var parameters: [String: String] = [:]
        for (part, text) in zip(parts, path) {
            if part.hasPrefix(":") {
                guard !text.isEmpty else { return nil }
                parameters[String(part.dropFirst())] = text
            } else if part != text {
                return nil
            }
        }
        return parameters
    }
}
