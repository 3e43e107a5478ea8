// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import TOMLKit

/// A web address of the operator's that is told of events.
package struct Webhook: Hashable, Sendable {
    /// By which the journal knows how far it has been told.
    package var name: String
    var delivery: Delivery
    /// Which events it wants.
    package var filter: EventFilter
    /// How many events go into one request at most.
    package var batch: Int
    /// The longest pause between two tries, in seconds.
    package var longestPause: Double
}

/// A webhook while the daemon runs. Confined to the coordinator.
final class RunningWebhook {
    /// Seconds after the first try that fails; the pause doubles with each one.
    static let firstPause: Double = 0.5

    let webhook: Webhook
    /// The last event that it has been told, or that is not for it.
    var position: UInt64
    /// What it has missed and has not been told of.
    var missed: MissedEvents?
    /// How many tries have failed, one after the other.
    var failures = 0
    var task: Task<Void, Never>?

    init(_ webhook: Webhook, position: UInt64, missed: MissedEvents? = nil) {
        self.webhook = webhook
        self.position = position
        self.missed = missed
    }

    /// Seconds until the next try.
    var pause: Double { webhook.pause(after: failures) }
}

extension Webhook {
    /// Seconds between the last of so many tries that have failed and the next one.
    package func pause(after failures: Int) -> Double {
        var pause = RunningWebhook.firstPause
        for _ in 1..<max(failures, 1) where pause < longestPause { pause *= 2 }
        return min(pause, longestPause)
    }
}

extension Configuration {
    /// Reads the tables `[[webhook]]`.
    static func webhooks(_ value: TOMLValue, path: String) throws(ConfigurationError) -> [Webhook] {
        var webhooks: [Webhook] = []
        for var table in try ConfigurationTable.list("webhook", value, path: path) {
            guard let name = try table.text("name"), name.utf8.count <= 64, name.allSatisfy(\.isPartOfName) else {
                throw table.wrong("name", "given: at most 64 letters, digits, dots, hyphens and underscores")
            }
            table.title = "webhook \"\(name)\""
            try table.allow(["name", "post", "kinds", "service", "batch", "timeout", "longest-pause"])
            if webhooks.contains(where: { $0.name == name }) {
                throw ConfigurationError(path: path, reason: "\(table.title) is there twice; give each its own name")
            }
            let timeout = try table.number("timeout", 0.1...3600) ?? 10
            guard let delivery = try table.text("post").flatMap({ Delivery($0, timeout: timeout) }) else {
                throw table.wrong("post", "an address that begins with http:// or https://")
            }
            var filter = EventFilter(service: try table.text("service"))
            if let texts = try table.texts("kinds") {
                let kinds = texts.compactMap { Event.Kind(rawValue: $0) }
                guard kinds.count == texts.count, !kinds.isEmpty else {
                    let known = Event.Kind.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
                    throw table.wrong("kinds", "a list of some of \(known)")
                }
                filter.kinds = Set(kinds)
            }
            let batch = try table.number("batch", 1...1000) ?? 100
            guard batch == batch.rounded() else { throw table.wrong("batch", "a whole number from 1 to 1000") }
            webhooks.append(
                Webhook(
                    name: name, delivery: delivery, filter: filter, batch: Int(batch),
                    longestPause: try table.number("longest-pause", 0.1...3600) ?? 60))
        }
        return webhooks
    }
}

extension Character {
    fileprivate var isPartOfName: Bool {
        isASCII && (isLetter || isNumber || self == "-" || self == "_" || self == ".")
    }
}
