// SPDX-License-Identifier: GPL-3.0-or-later

/// Many sessions moved away from a host: who goes next, where to, and what follows from how it went. Opens no socket,
/// reads no clock.
///
///     checking ─► canary ─► settling ─► rest ─► finished
///        │           └────────┴─► returning ──────►│
///        └──────────────(a to-host refuses)───────►┘   pause, resume, cancel: at any time
///
/// Each session is moved by a migration of its own; this says only when one begins. In pause, and when cancelled, none
/// begins, and those under way go on to their ends. A session that has gone before its turn gives its place to the next.
/// One that may not be moved yet is tried again when it may.
public struct Drain: Sendable {
    /// What is to be done, settled before it begins.
    public struct Plan: Sendable {
        /// How many sessions there are, in the order of their turns.
        public var members: Int
        public var hosts: [WeightedHost]
        /// Migrations that may begin in a second; nil for as many as the limit of those under way allows.
        public var rate: Double?
        /// Migrations that may be under way at once.
        public var inFlight: Int
        /// The share that must succeed first, from 0 (none) to 1.
        public var canary: Double
        /// Nanoseconds for which the canary's new connections must stay established.
        public var settle: UInt64
        /// Whether the to-hosts are asked for a connection, before and while sessions move to them.
        public var checksHosts: Bool

        public init(
            members: Int, hosts: [WeightedHost], rate: Double? = nil, inFlight: Int = 128, canary: Double = 0,
            settle: UInt64 = 2_000_000_000, checksHosts: Bool = true
        ) {
            self.members = members
            self.hosts = hosts
            self.rate = rate
            self.inFlight = inFlight
            self.canary = canary
            self.settle = settle
            self.checksHosts = checksHosts
        }
    }

    /// How one session's migration ended.
    public enum Result: Hashable, Codable, Sendable {
        /// On its to-host; whether the from-host's reset is proven.
        case moved(isProven: Bool)
        /// There was nothing to move any more.
        case gone
        /// It is where it was.
        case failed(reason: String)
    }

    /// What has happened. Times are nanoseconds of one monotonic clock.
    public enum Event: Sendable {
        case begin
        /// A to-host has answered, or has not: by its place in the plan.
        case checked(host: Int, refusal: String?)
        /// A session's turn came before the rate of its service had a place, which it has at `until`; nothing has begun.
        case postponed(Int, until: UInt64, reason: String)
        /// A session's migration has ended, by its place in the order of turns.
        case ended(Int, Result)
        /// The new connection of a session that moved has been reset.
        case broken(Int, reason: String)
        /// The answer to `examine`: what is wrong with the first that is not as it should be.
        case examined(broken: String?)
        /// The migration of a session back to where it was has ended.
        case returned(Int, isBack: Bool)
        case deadlinePassed
        case pause, resume, cancel
    }

    /// What the daemon must do now.
    public enum Effect: Hashable, Sendable {
        /// Ask every to-host whether it accepts connections.
        case check
        /// Begin the migration of a session to the host at this place of the plan.
        case migrate(Int, host: Int)
        /// See whether the new connections of these sessions are established.
        case examine([Int])
        /// Begin the migrations of these sessions back to where they were.
        case sendBack([Int])
        case progress(String, detail: String?)
        case finish(Outcome)
    }

    /// How the drain ended.
    public enum Outcome: Hashable, Sendable {
        /// Every session has had its turn.
        case completed
        case cancelled
        /// It was stopped; the reason is a sentence.
        case failed(reason: String)
    }

    public enum State: String, Hashable, Sendable {
        case checking, canary, settling, rest, returning, finished
    }

    /// How many sessions stand where.
    public struct Counts: Hashable, Sendable {
        public var moved = 0
        /// Those of the moved whose from-host's reset is not proven.
        public var unproven = 0
        public var gone = 0
        public var failed = 0
        /// Back where they were, because the canary failed.
        public var returned = 0
        public var inFlight = 0

        public init() {}
    }

    public let plan: Plan
    public internal(set) var state = State.checking
    public internal(set) var isPaused = false
    public internal(set) var isCancelled = false
    public internal(set) var counts = Counts()
    public internal(set) var spread: Spread
    public private(set) var outcome: Outcome?
    /// Why sessions failed, each reason once, with how often; the first few.
    public internal(set) var reasons: [String: Int] = [:]
    /// When `deadlinePassed` is wanted, in nanoseconds of the caller's clock.
    public private(set) var deadline: UInt64?

    /// The next session's place.
    public internal(set) var next = 0
    /// Sessions that must succeed before the rest goes.
    public let canaries: Int
    private var pace: DrainPace?
    private var settledAt: UInt64 = 0
    private var awaitedChecks = 0
    private var lastCheck: UInt64 = 0
    var begun: [Int: Int] = [:]
    /// Those whose turn came before they might move, and when they may.
    var postponed: [(member: Int, until: UInt64)] = []
    private var isSlowed = false
    /// Those that have moved in the canary.
    var movedCanaries: [Int] = []
    /// Where they are.
    var canaryHosts: [Int: Int] = [:]
    var returning: Set<Int> = []
    /// Why no further session begins.
    public internal(set) var stopReason: String?
    /// Where one that is taken up again goes on.
    var resumed: State?
    private var isExamining = false

    /// How often the to-hosts are asked while sessions move, in nanoseconds.
    static let checkInterval: UInt64 = 1_000_000_000
    /// Migrations begin in groups this far apart, in nanoseconds: a group is one change of the kernel's table.
    static let beat: UInt64 = 10_000_000
    static let notSentBack = "A session of the canary could not be sent back."
    /// With so many postponed nobody else has a turn, who would probably be postponed too; and so many are tried at once.
    public static let mostPostponed = 128

    public init(_ plan: Plan) {
        self.plan = plan
        spread = Spread(weights: plan.hosts.map(\.weight))
        pace = plan.rate.map { DrainPace(rate: $0) }
        canaries =
            plan.canary > 0 ? min(plan.members, max(1, Int((plan.canary * Double(plan.members)).rounded(.up)))) : 0
    }

    public var isFinished: Bool { outcome != nil }
    /// Whether the canary has succeeded, or there is none.
    public var isCanaryOver: Bool { canaries == 0 || state == .rest }
    /// The to-host of a session whose migration is under way: its place in the plan.
    public func host(of member: Int) -> Int? { begun[member] }
    /// Sessions that have not had their turn.
    public var waiting: Int { plan.members - next + postponed.count }
    private var hasWaiting: Bool { next < plan.members || !postponed.isEmpty }

    /// Takes an event and says what follows from it. An event that has no meaning in the present state is ignored.
    public mutating func handle(_ event: Event, at now: UInt64) -> [Effect] {
        guard outcome == nil else { return [] }
        switch event {
        case .begin:
            if let resumed {
                self.resumed = nil
                return goOn(resumed, at: now)
            }
            guard state == .checking, awaitedChecks == 0 else { return [] }
            guard plan.checksHosts, plan.members > 0 else { return enterFirst(at: now) }
            return check(at: now)
        case .checked(let host, let refusal): return checked(host, refusal, at: now)
        case .postponed(let member, let until, let reason): return postpone(member, until, reason, at: now)
        case .ended(let member, let result): return ended(member, result, at: now)
        case .broken(let member, let reason): return broken(member, reason, at: now)
        case .examined(let broken): return examined(broken, at: now)
        case .returned(let member, let isBack): return returned(member, isBack)
        case .deadlinePassed:
            deadline = nil
            return proceed(at: now)
        case .pause:
            guard !isPaused, !isCancelled else { return [] }
            isPaused = true
            return [.progress("paused", detail: nil)]
        case .resume:
            guard isPaused else { return [] }
            isPaused = false
            pace?.rest()
            return [.progress("resumed", detail: nil)] + proceed(at: now)
        case .cancel:
            guard !isCancelled else { return [] }
            isCancelled = true
            return [.progress("cancelled", detail: nil)] + proceed(at: now)
        }
    }

    // MARK: - To-hosts

    private mutating func check(at now: UInt64) -> [Effect] {
        awaitedChecks = plan.hosts.count
        lastCheck = now
        return [.check]
    }

    private mutating func checked(_ host: Int, _ refusal: String?, at now: UInt64) -> [Effect] {
        awaitedChecks = max(0, awaitedChecks - 1)
        if let refusal { return stop(refusal, at: now) }
        guard state == .checking, awaitedChecks == 0 else { return [] }
        return enterFirst(at: now)
    }

    private mutating func enterFirst(at now: UInt64) -> [Effect] {
        state = canaries > 0 ? .canary : .rest
        lastCheck = now
        let detail = canaries > 0 ? "the first \(canaries) of \(plan.members) sessions" : "\(plan.members) sessions"
        return [.progress(state == .canary ? "canary" : "moving", detail: detail)] + proceed(at: now)
    }

    // MARK: - Turns

    mutating func proceed(at now: UInt64) -> [Effect] {
        if isCancelled || stopReason != nil, state != .returning {
            return counts.inFlight == 0 ? conclude() : []
        }
        switch state {
        case .checking, .returning, .finished: return []
        case .settling:
            guard now >= settledAt else {
                deadline = settledAt
                return []
            }
            guard !isExamining else { return [] }
            isExamining = true
            return [.examine(movedCanaries)]
        case .canary:
            let effects = startSome(upTo: canaries - counts.moved - counts.inFlight, at: now)
            guard counts.inFlight == 0, counts.moved >= canaries || !hasWaiting else { return effects }
            state = .settling
            settledAt = now + plan.settle
            deadline = settledAt
            return effects + [.progress("settling", detail: "\(counts.moved) sessions of the canary have moved")]
        case .rest:
            let effects = startSome(upTo: .max, at: now)
            return counts.inFlight == 0 && !hasWaiting ? effects + conclude() : effects
        }
    }

    private mutating func startSome(upTo most: Int, at now: UInt64) -> [Effect] {
        guard !isPaused else { return [] }
        var effects: [Effect] = []
        if plan.checksHosts, awaitedChecks == 0, now >= lastCheck + Self.checkInterval, hasWaiting {
            effects += check(at: now)
        }
        var left = min(most, plan.inFlight - counts.inFlight)
        // They have had their turn: neither the rate nor the order holds them up again.
        var again: [Int] = []
        postponed.removeAll { each in
            guard again.count < min(left, Self.mostPostponed), each.until <= now else { return false }
            again.append(each.member)
            return true
        }
        effects += again.map { begin($0) }
        left = postponed.count < Self.mostPostponed ? min(left - again.count, most - again.count - postponed.count) : 0
        while left > 0, next < plan.members, pace?.take(at: now) ?? true {
            effects.append(begin(next))
            next += 1
            left -= 1
        }
        var due = postponed.map(\.until).min()
        if left > 0, next < plan.members, let turn = pace?.nextAt { due = min(due ?? turn, turn) }
        if let due { deadline = max(due, now + Self.beat) }
        return effects
    }

    private mutating func begin(_ member: Int) -> Effect {
        let host = spread.assign()
        begun[member] = host
        counts.inFlight += 1
        return .migrate(member, host: host)
    }

    private mutating func postpone(_ member: Int, _ until: UInt64, _ reason: String, at now: UInt64) -> [Effect] {
        guard let host = begun.removeValue(forKey: member) else { return [] }
        counts.inFlight -= 1
        spread.release(host)
        postponed.append((member, max(until, now + Self.beat)))
        defer { isSlowed = true }
        return (isSlowed ? [] : [.progress("slowed", detail: reason)]) + proceed(at: now)
    }

    private mutating func ended(_ member: Int, _ result: Result, at now: UInt64) -> [Effect] {
        guard let host = begun.removeValue(forKey: member) else { return [] }
        counts.inFlight -= 1
        switch result {
        case .moved(let isProven):
            counts.moved += 1
            if !isProven { counts.unproven += 1 }
            if state == .canary || state == .returning {
                movedCanaries.append(member)
                canaryHosts[member] = host
            }
            if state == .returning { return sendBack([member]) }
        case .gone:
            counts.gone += 1
            spread.release(host)
        case .failed(let reason):
            counts.failed += 1
            spread.release(host)
            if reasons.count < 16 || reasons[reason] != nil { reasons[reason, default: 0] += 1 }
            if state == .canary { return stop(reason, at: now) }
        }
        if state == .returning { return concludeReturn() }
        return proceed(at: now)
    }

    // MARK: - The canary

    private mutating func broken(_ member: Int, _ reason: String, at now: UInt64) -> [Effect] {
        guard state == .canary || state == .settling, movedCanaries.contains(member) || begun[member] != nil else {
            return []
        }
        return stop(reason, at: now)
    }

    private mutating func examined(_ broken: String?, at now: UInt64) -> [Effect] {
        guard state == .settling, isExamining else { return [] }
        isExamining = false
        if let broken { return stop(broken, at: now) }
        state = .rest
        movedCanaries = []
        return [.progress("canary succeeded", detail: "the other \(waiting) sessions follow")] + proceed(at: now)
    }

    /// No further session begins. The canary's go back to where they were; later ones stay where they are.
    private mutating func stop(_ reason: String, at now: UInt64) -> [Effect] {
        guard stopReason == nil, state != .returning else { return [] }
        stopReason = reason
        deadline = nil
        guard state == .canary || state == .settling else { return proceed(at: now) }
        state = .returning
        let effects: [Effect] = [.progress("canary failed", detail: reason)]
        if movedCanaries.isEmpty { return effects + concludeReturn() }
        return effects + sendBack(movedCanaries)
    }

    mutating func sendBack(_ members: [Int]) -> [Effect] {
        returning.formUnion(members)
        return [.progress("returning", detail: "\(members.count) sessions"), .sendBack(members)]
    }

    private mutating func returned(_ member: Int, _ isBack: Bool) -> [Effect] {
        guard returning.remove(member) != nil else { return [] }
        if isBack {
            counts.returned += 1
            if let host = canaryHosts[member] { spread.release(host) }
        } else {
            reasons[Self.notSentBack, default: 0] += 1
        }
        return concludeReturn()
    }

    mutating func concludeReturn() -> [Effect] {
        counts.inFlight == 0 && returning.isEmpty ? conclude() : []
    }

    private mutating func conclude() -> [Effect] {
        state = .finished
        deadline = nil
        let result: Outcome =
            if let stopReason { .failed(reason: stopReason) } else if isCancelled, waiting > 0 { .cancelled } else {
                .completed
            }
        outcome = result
        return [.finish(result)]
    }
}
