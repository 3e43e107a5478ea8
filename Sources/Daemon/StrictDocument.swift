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
        // RFC 8259 section 8.1; the decoder would take UTF-16 as well.
        guard !body.contains(0), String(validating: body, as: UTF8.self) != nil else {
            throw Problem(kind: .malformedRequest, detail: "The body is not UTF-8: send JSON in UTF-8.")
        }
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
        let known = (try? JSONEncoder().encode(document)).map { JSONMembers.paths(in: $0) } ?? []
        switch JSONMembers.flaw(in: body, knowing: known) {
        case .repeated(let member)?:
            throw Problem(
                kind: .malformedRequest, detail: "\(quoted(member)) is there twice in \(kind): give it once.")
        case .unknown(let member)?:
            throw Problem(
                kind: .malformedRequest, detail: "\(quoted(member)) is not a member of \(kind): leave it out.")
        case .strayComma?: throw Problem(kind: .malformedRequest, detail: "The body is not \(expected).")
        case nil: break
        }
        return document
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
