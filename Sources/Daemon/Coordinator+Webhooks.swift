// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Foundation
internal import Logging

// A webhook is a consumer of events like any other: it holds a number and nothing else, so that one which is down or
// slow costs nothing and holds nobody up. What differs is that the daemon keeps the number for it.
extension Coordinator {
    /// Seconds that the last events have at the daemon's end.
    private static let farewell: Double = 2

    /// Goes on where each webhook was at the last end of the daemon.
    func startWebhooks() throws {
        let positions = try journal.positions()
        for webhook in configuration.webhooks {
            start(RunningWebhook(webhook, position: positions[webhook.name] ?? eventLog.lastID))
            if positions[webhook.name] == nil { writePosition(of: webhook.name) }
        }
        try journal.forgetPositions(except: Array(webhooks.keys))
    }

    /// Takes webhooks from a configuration that was read anew. One that has not changed does not notice; one that has
    /// goes on where it was; a new one begins with what happens from now on.
    func setWebhooks(_ fresh: [Webhook]) {
        let old = webhooks
        webhooks = [:]
        for webhook in fresh {
            guard let running = old[webhook.name] else {
                start(RunningWebhook(webhook, position: eventLog.lastID))
                writePosition(of: webhook.name)
                continue
            }
            if running.webhook == webhook {
                webhooks[webhook.name] = running
            } else {
                running.task?.cancel()
                start(
                    RunningWebhook(webhook, position: running.position, missed: running.missed), behind: running.task)
            }
        }
        for (name, running) in old where webhooks[name] == nil { running.task?.cancel() }
        do {
            try journal.forgetPositions(except: Array(webhooks.keys))
        } catch {
            logger.error("\(error)")
        }
    }

    /// Lets the webhooks that can be reached have the last events, for a moment.
    func endWebhooks() async {
        for running in webhooks.values where running.failures > 0 { running.task?.cancel() }
        let timer = loop.schedule(at: EventLoop.now + UInt64(Self.farewell * 1e9)) {
            for running in self.webhooks.values { running.task?.cancel() }
        }
        for running in webhooks.values { await running.task?.value }
        loop.cancel(timer)
    }

    /// Ends all deliveries and writes down how far they have come.
    func stopWebhooks() {
        for (name, running) in webhooks {
            running.task?.cancel()
            // Nothing that is left is for it: a restart does not take that for a gap.
            if let rest = eventLog.batch(after: running.position, matching: running.webhook.filter, limit: 1),
                rest.events.isEmpty
            {
                running.position = rest.upTo
            }
            writePosition(of: name)
        }
    }

    private func start(_ running: RunningWebhook, behind predecessor: Task<Void, Never>? = nil) {
        webhooks[running.webhook.name] = running
        running.task = Task {
            // Two requests to one webhook at once could change places on the way.
            await predecessor?.value
            await self.deliver(running)
        }
    }

    private func deliver(_ running: RunningWebhook) async {
        let webhook = running.webhook
        while !Task.isCancelled {
            guard let batch = eventLog.batch(after: running.position, matching: webhook.filter, limit: webhook.batch)
            else {
                skipWhatIsGone(running)
                continue
            }
            if batch.events.isEmpty {
                running.position = batch.upTo
                if isStopping { return }
                let waiter = Waiter()
                eventLog.add(waiter)
                await waiter.wait()
                eventLog.remove(waiter)
                continue
            }
            let document = EventDelivery(webhook: webhook.name, events: batch.events, missed: running.missed)
            let failure = await post(document, to: webhook.delivery)
            if Task.isCancelled { return }
            guard let failure else {
                running.position = batch.upTo
                running.missed = nil
                if running.failures > 0 { logger.notice("webhook \(webhook.name) takes events again") }
                running.failures = 0
                writePosition(of: webhook.name)
                continue
            }
            running.failures += 1
            logger.warning(
                "webhook \(webhook.name): \(failure); event \(batch.events[0].id) and later ones wait, the next try is in \(running.pause.plainText) s"
            )
            if isStopping { return }
            try? await Task.sleep(for: .seconds(running.pause))
        }
    }

    /// Goes on with the oldest event that is kept, and says so: to the log at once, to the webhook with the next delivery.
    private func skipWhatIsGone(_ running: RunningWebhook) {
        let oldest = eventLog.oldestID
        if running.position + 1 < oldest {
            let first = running.missed?.first ?? running.position + 1
            running.missed = MissedEvents(first: first, last: oldest - 1)
            logger.warning(
                "webhook \(running.webhook.name): events \(first) to \(oldest - 1) are kept no longer, and it has missed them"
            )
        }
        running.position = oldest - 1
    }

    /// Posts the document; a clause that says what was wrong, or nil.
    private func post(_ document: EventDelivery, to delivery: Delivery) async -> String? {
        do {
            let (status, _) = try await delivery.post(try Reply.encode(document))
            return (200..<300).contains(status) ? nil : "it answered with status \(status)"
        } catch {
            return delivery.clause(about: error)
        }
    }

    private func writePosition(of name: String) {
        guard let running = webhooks[name] else { return }
        do {
            try journal.setPosition(of: name, to: running.position)
        } catch {
            logger.error("\(error)")
        }
    }
}
