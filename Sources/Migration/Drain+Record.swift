// SPDX-License-Identifier: GPL-3.0-or-later

extension Drain {
    /// What was written down of a drain whose daemon has ended.
    public struct Record: Sendable {
        /// A session that has had its turn.
        public struct Turn: Hashable, Sendable {
            public var host: Int
            public var result: Result
            /// Whether it went back where it was, if it was sent back.
            public var isBack: Bool?

            public init(host: Int, result: Result, isBack: Bool? = nil) {
                self.host = host
                self.result = result
                self.isBack = isBack
            }
        }

        /// By place in the order of turns.
        public var turns: [Int: Turn] = [:]
        /// Those whose migrations go on, with their to-hosts.
        public var underWay: [Int: Int] = [:]
        /// Those whose migrations back go on.
        public var returning: Set<Int> = []
        public var isPaused = false
        public var isCancelled = false
        /// Whether the canary had succeeded, or there was none.
        public var isCanaryOver = false
        /// Why no further session begins.
        public var stopReason: String?

        public init() {}
    }

    /// A drain that is taken up again, to be begun like a new one. Who has had no turn, or was taken back in the middle of
    /// it, has its turn first. A canary goes on, and settles anew.
    public init(_ plan: Plan, resuming record: Record) {
        self.init(plan)
        (isPaused, isCancelled, stopReason) = (record.isPaused, record.isCancelled, record.stopReason)
        let isCanaryOver = record.isCanaryOver || canaries == 0
        for (member, turn) in record.turns.sorted(by: { $0.key < $1.key }) {
            count(turn, of: member, isCanary: !isCanaryOver)
        }
        for (member, host) in record.underWay where record.turns[member] == nil {
            begun[member] = host
            counts.inFlight += 1
            spread.occupy(host)
        }
        let known = Set(record.turns.keys).union(record.underWay.keys)
        next = (known.max() ?? -1) + 1
        postponed = (0..<next).filter { !known.contains($0) }.map { ($0, 0) }
        returning = record.returning.filter { canaryHosts[$0] != nil }
        if !known.isEmpty { resumed = isCanaryOver ? .rest : stopReason == nil ? .canary : .returning }
    }

    private mutating func count(_ turn: Record.Turn, of member: Int, isCanary: Bool) {
        switch turn.result {
        case .moved(let isProven):
            counts.moved += 1
            if !isProven { counts.unproven += 1 }
            spread.occupy(turn.host)
            guard isCanary else { return }
            canaryHosts[member] = turn.host
            switch turn.isBack {
            case nil: movedCanaries.append(member)
            case true?:
                counts.returned += 1
                spread.release(turn.host)
            case false?: reasons[Self.notSentBack, default: 0] += 1
            }
        case .gone: counts.gone += 1
        case .failed(let reason):
            counts.failed += 1
            reasons[reason, default: 0] += 1
        }
    }

    /// Goes on where the one before was.
    mutating func goOn(_ state: State, at now: UInt64) -> [Effect] {
        self.state = state
        let effects: [Effect] = [.progress("taken up again", detail: "\(counts.moved) of \(plan.members) have moved")]
        guard state == .returning else { return effects + proceed(at: now) }
        let waiting = movedCanaries.filter { !returning.contains($0) }
        return effects + (waiting.isEmpty ? concludeReturn() : sendBack(waiting))
    }
}
