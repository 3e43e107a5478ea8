// SPDX-License-Identifier: GPL-3.0-or-later

internal import Foundation

/// Something of the operator's that is to happen at a point of a migration: a program or a web address.
package struct Hook: Hashable, Sendable {
    /// The points of a migration that a hook can be at.
    package enum Point: String, Hashable, Sendable, CaseIterable {
        /// Before anything is changed, and before the to-host is asked for a connection. Its failure is the migration's.
        case prepare
        /// The gateway carries the session to the to-host.
        case switched
        /// The migration is done, its reset proven or not.
        case completed
        /// The migration has failed after it had begun to prepare or to change something.
        case failed
    }

    enum Action: Hashable, Sendable {
        /// A program by its absolute path, with its arguments. No shell takes part.
        case program([String])
        case post(Delivery)
    }

    package var point: Point
    /// The service whose migrations it is for; nil for all.
    package var service: String?
    var action: Action
    /// Seconds that it has.
    var timeout: Double

    /// The hook as logs and reasons name it.
    var name: String {
        switch action {
        case .program(let words): words.first ?? ""
        case .post(let delivery): "\(delivery.address)"
        }
    }
}

/// How a hook ended.
enum HookResult: Sendable {
    /// What it has printed, or answered.
    case succeeded(Data)
    /// A clause that says why, without an end.
    case failed(reason: String)
}

extension Double {
    /// Without a fraction that says nothing: 10, not 10.0.
    var plainText: String { self == rounded() && magnitude < 1e15 ? "\(Int(self))" : "\(self)" }
}
