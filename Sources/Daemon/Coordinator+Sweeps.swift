// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Conntrack
internal import Foundation
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Ruleset
internal import Wire

/// The sweeps of what the kernel has learnt: see `ReplyLook`.
struct ReplySweeps {
    /// The one that is under way.
    var current: ReplySweep?
    var schedule = SweepSchedule(at: EventLoop.now)
    /// When it will be asked next whether one is due.
    var timer: UInt64?
    /// Observations that full rings had lost when the current one began.
    var overflows: UInt64 = 0
    /// Replies let go since the daemon's start.
    var ended: UInt64 = 0
}

extension Coordinator {
    /// Elements that one transaction lets go, and the pause behind it, in which the loop does other things.
    private static let portion = 128
    private static let breath: UInt64 = 5_000_000
    /// After the last of them: a SYN that was learnt in the middle of it has been heard of by then.
    private static let epilogue: UInt64 = 100_000_000

    /// A SYN has passed that user space carries: its session learns how it is answered, as the kernel has.
    func learn(_ reply: FourTuple, of key: SessionKey) {
        sessions.learn(reply, of: key)
        if let again = sweeps.current?.renew(reply), !again.isEmpty { restore(again) }
        scheduleSweep()
    }

    /// Sees to it that the next sweep is made when it is due. Whoever learns a reply asks, so nothing wakes a daemon at rest.
    func scheduleSweep() {
        guard sweeps.timer == nil, sweeps.current == nil, let due = nextSweep else { return }
        // More may be learnt meanwhile: then it is due earlier.
        sweeps.timer = loop.schedule(at: min(due, EventLoop.now + SweepSchedule.shortPause)) {
            self.sweeps.timer = nil
            guard let due = self.nextSweep, due <= EventLoop.now else { return self.scheduleSweep() }
            self.beginSweep()
        }
    }

    private var nextSweep: UInt64? {
        sweeps.schedule.due(known: sessions.replyCountOfMany, size: gateway.replySize, at: EventLoop.now)
    }

    private func beginSweep() {
        guard sweeps.current == nil, !isStopping else { return }
        sweeps.current = ReplySweep()
        sweeps.overflows = gateway.ringOverflows
        let known = sessions.repliesOfMany
        let options = Gateway.rulesetOptions(configuration)
        let began = EventLoop.now
        // All connections of a gateway may be a million: nobody waits for them, and packets come first. Not the lowest priority:
        // it shares memory with those who have more.
        Thread.detachNewThread {
            _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, 10)
            _ = unsafe nfqmig_name_thread("nfqmig-replies")
            let findings = Result { try ReplyLook.look(known: known, options) }
            let looked = EventLoop.now - began
            Task { await self.looked(findings, for: looked) }
        }
    }

    private func looked(_ findings: Result<ReplyFindings, any Error>, for time: UInt64) {
        guard !isStopping else { return }
        switch findings {
        case .success(let findings):
            sweeps.schedule.end(findings, looked: time, at: EventLoop.now)
            sweeps.current?.take(findings)
            warn(of: findings)
            logger.debug(
                "learnt replies looked at",
                metadata: [
                    "standing": "\(findings.standing)", "ended": "\(findings.replies.count)",
                    "seconds": "\(Double(time) / 1e9)",
                ])
            continueSweep()
        case .failure(let error):
            logger.error("learnt replies cannot be looked at: \(error)")
            sweeps.schedule.fail(looked: time, at: EventLoop.now)
            endSweep()
        }
    }

    /// Lets some go: the table's elements in one transaction, then what the sessions know of them.
    private func continueSweep() {
        guard !isStopping, sweeps.current != nil else { return }
        // Who has begun a connection up to now keeps its reply. What a full ring has lost nobody knows.
        lookAtObservations()
        guard gateway.ringOverflows == sweeps.overflows, let part = sweeps.current?.next(Self.portion) else {
            return endSweep()
        }
        let ending = part.elements.filter { !isClaimed($0) }
        let connections = ending.compactMap { element -> FourTuple? in
            if case .reply(let reply) = element { sessions.connection(answeredBy: reply) } else { nil }
        }
        do {
            try gateway.letGo(ending, of: connections, in: ReplySweep.patience)
        } catch {
            logger.error("what was learnt cannot be let go: \(error)")
            return endSweep()
        }
        for case .reply(let reply) in ending { sessions.forget(reply) }
        for reply in part.unheld { sessions.forget(reply) }
        sweeps.ended += UInt64(ending.count { $0.isReply } + part.unheld.count)
        let isDone = sweeps.current?.isDone ?? true
        loop.schedule(at: EventLoop.now + (isDone ? Self.epilogue : Self.breath)) {
            if isDone { self.endSweep() } else { self.continueSweep() }
        }
    }

    private func endSweep() {
        sweeps.current = nil
        scheduleSweep()
    }

    /// Whether a learnt element has another reason to stand than a connection of many.
    private func isClaimed(_ element: TableElement) -> Bool {
        switch element {
        case .reply(let reply): sessions.isOfOneConnection(reply)
        // That of a service's client has none.
        case .icmpPeer(let client):
            sessions.sessions(of: client).contains { $0.key.client != nil && $0.binding?.datapath == .queue }
        default: true
        }
    }

    /// A connection began in the very moment in which the reply of the one before it was let go.
    private func restore(_ elements: [TableElement]) {
        do {
            try gateway.keep(learnt: elements)
        } catch {
            logger.error("\(error)")
        }
    }

    private func warn(of findings: ReplyFindings) {
        for (family, held) in findings.held {
            let left = findings.left[family] ?? 0
            let name = SetName(.replies, family)
            if held >= gateway.replySize {
                logger.error(
                    "\(name) was full: connections that were opened meanwhile may have been answered in their host's name",
                    metadata: ["held": "\(held)", "left": "\(left)"])
            } else if left > gateway.replySize / 8 * 7 {
                logger.warning("\(name) is nearly full", metadata: ["held": "\(left)", "size": "\(gateway.replySize)"])
            }
        }
    }
}

extension TableElement {
    fileprivate var isReply: Bool {
        if case .reply = self { true } else { false }
    }
}

extension ReplyLook {
    /// Looks with sockets of its own.
    fileprivate static func look(known: [FourTuple], _ options: RulesetOptions) throws -> ReplyFindings {
        var look = ReplyLook(known: known)
        // The elements first: what is learnt later is none of the look's business.
        try NetfilterTable(options).forEachLearnt(lasting: UInt64(ReplySweep.patience) * 2000) { look.add($0, age: $1) }
        try ConntrackTable().forEachEntry { if $0.phase != .closed { look.add(connection: $0.original) } }
        return look.result()
    }
}
