// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
package import Foundation

/// Reads JSON documents and refuses members that they do not have: a misspelt option must not be taken for its default.
package enum StrictDocument {
    /// Throws a `Problem` that names the member that is wrong.
    package static func decode<Document: Codable>(
        _ type: Document.Type, from body: Data, expected: String
    ) throws(Problem) -> Document {
        let kind = String(expected.prefix { $0 != ":" })
        let document: Document
        do {
            document = try JSONDecoder().decode(type, from: body)
        } catch let error as DecodingError {
            throw Problem(
                kind: .malformedRequest,
                detail: "The body is not \(reason(error).map { "\(kind): \($0)" } ?? expected).")
        } catch {
            throw Problem(kind: .malformedRequest, detail: "The body is not \(expected).")
        }
        // What was understood comes out again; what does not come out was not understood.
        if let given = try? JSONSerialization.jsonObject(with: body),
            let encoded = try? JSONEncoder().encode(document),
            let known = try? JSONSerialization.jsonObject(with: encoded),
            let unknown = unknownMember(in: given, knowing: known, at: "")
        {
            throw Problem(
                kind: .malformedRequest, detail: "\(quoted(unknown)) is not a member of \(kind): leave it out.")
        }
        return document
    }

    private static func unknownMember(in given: Any, knowing known: Any, at path: String) -> String? {
        if let given = given as? [String: Any], let known = known as? [String: Any] {
            for (name, value) in given.sorted(by: { $0.key < $1.key }) where !(value is NSNull) {
                let here = path.isEmpty ? name : path + "." + name
                guard let counterpart = known[name] else { return here }
                if let unknown = unknownMember(in: value, knowing: counterpart, at: here) { return unknown }
            }
        } else if let given = given as? [Any], let known = known as? [Any] {
            for (index, (value, counterpart)) in zip(given, known).enumerated() {
                if let unknown = unknownMember(in: value, knowing: counterpart, at: "\(path)[\(index)]") {
                    return unknown
                }
            }
        }
        return nil
    }

    private static func reason(_ error: DecodingError) -> String? {
        func name(_ path: [any CodingKey]) -> String { quoted(path.map(\.stringValue).joined(separator: ".")) }
        switch error {
        case .keyNotFound(let key, let context): return "\(name(context.codingPath + [key])) is missing"
        case .typeMismatch(_, let context) where !context.codingPath.isEmpty:
            return "\(name(context.codingPath)) is of another type"
        case .valueNotFound(_, let context) where !context.codingPath.isEmpty:
            return "\(name(context.codingPath)) must not be null"
        case .dataCorrupted(let context) where !context.codingPath.isEmpty:
            return "\(name(context.codingPath)) has a value that cannot be"
        default: return nil
        }
    }
}
