// SPDX-License-Identifier: GPL-3.0-or-later

public import Ruleset

/// A change of the table that failed; the table is as it was.
public enum TableError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The kernel refused it. The element is the first that it refused, nil when the cause is not an element.
    case kernel(NetlinkError, element: TableElement?)
    /// An element with addresses of both families.
    case mixedFamilies(MixedFamilies)

    public var description: String {
        switch self {
        case .kernel(let error, nil): error.description
        case .kernel(let error, let element?): "Element \(element): \(error.description)"
        case .mixedFamilies(let error): error.description
        }
    }

    static func form(of element: TableElement) throws(TableError) -> ElementForm {
        do throws(MixedFamilies) {
            return try ElementForm(element)
        } catch {
            throw .mixedFamilies(error)
        }
    }
}
