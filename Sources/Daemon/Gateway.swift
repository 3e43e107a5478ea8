// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Conntrack
internal import Glibc
internal import Logging
internal import Migration
internal import NFQueueBridge
internal import Rewriter
package import Ruleset
internal import Spoofer
internal import Synchronization
internal import Wire

/// The kernel handles of the daemon, each opened once: the table, the queues, conntrack, the raw sockets. Confined to
/// the event loop's thread.
final class Gateway {
    let table: NetfilterTable
    let conntrack: ConntrackTable
    let sockets: SegmentSocket
    /// How the queues are set up.
    private(set) var options = QueueOptions()
    private(set) var queues: [QueueThread<PacketHandler>] = []
    private(set) var rings: [ObservationRing<Observation>] = []
    /// Who writes the endpoints into packets of the queue datapath.
    private let treatment: Treatment
    /// With treatment `mark`: what the kernel writes.
    private var translations = TranslationNumbers()
    private var translationsBeforeTidying = fewTranslations
    /// How many there were when the table would not let go of those that nobody needs.
    private var untidyCount = 0
    private static let fewTranslations = 1024
    /// How many replies of each family the kernel can learn.
    let replySize: Int
    /// Elements that several sessions share, with the number of sessions that want them.
    private var shared: [TableElement: Int] = [:]

    /// As much as an ICMP error can have (RFC 4443 section 2.4; RFC 1812 section 4.3.2.3 asks for less): user space rewrites
    /// what it quotes. Of a segment the first 128 octets would do, and as many cost what these cost.
    private static let markedCopyRange: UInt16 = 1280

    init(_ configuration: Configuration) throws {
        treatment = configuration.treatment
        let options = Self.rulesetOptions(configuration)
        table = try NetfilterTable(options)
        replySize = Int(Ruleset(options).sets.first { $0.name.purpose == .replies }?.size ?? .max)
        conntrack = try ConntrackTable()
        sockets = try SegmentSocket(mark: configuration.mark)
    }

    /// Observations that were lost because a ring was full.
    var ringOverflows: UInt64 { rings.reduce(0) { $0 + $1.overflows } }

    static func rulesetOptions(_ configuration: Configuration) -> RulesetOptions {
        RulesetOptions(
            mark: configuration.mark, firstQueue: configuration.firstQueue, queueCount: configuration.queues,
            carries: configuration.treatment == .mark)
    }

    /// Binds the queues and starts their threads, each knowing the flows of these sessions before its first packet. What is
    /// translated by a mark is dropped until the table has `translationElements`.
    func startQueues(_ configuration: Configuration, knowing sessions: [Session]) throws {
        if treatment == .mark {
            let wanted = Self.translations(of: sessions)
            translations.adopt(try presentTranslations(), for: wanted)
            _ = try translations.number(wanted)
            options.copyRange = Self.markedCopyRange
        }
        var generator = SystemRandomNumberGenerator()
        options.maximumLength = configuration.queueLength
        options.sizeBuffers(mtu: Int(nfqmig_largest_mtu()))
        let options = options
        let initial = InitialFlows(of: sessions, takers: configuration.queues)
        for index in 0..<configuration.queues {
            let ring = try ObservationRing<Observation>(capacity: 4096)
            let seed = generator.next()
            let mark = configuration.mark
            let (treatment, marks) = (treatment, translations.marks)
            let thread = try QueueThread<PacketHandler>(queue: configuration.firstQueue + index, options: options) {
                PacketHandler(
                    observations: ring, mark: mark, seed: seed, queue: index, treatment: treatment, marks: marks,
                    flows: initial.take())
            }
            rings.append(ring)
            queues.append(thread)
        }
    }

    /// By what the kernel's table translates until it is adopted or replaced, whoever has made it.
    private func presentTranslations() throws -> Set<TableElement> {
        do throws(NetlinkError) {
            return try table.translations()
        } catch {
            // There is no table, or it is one without translations.
            if error.errno == ENOENT { return [] }
            throw error
        }
    }

    func stopQueues() {
        for queue in queues { queue.stop() }
        queues = []
    }

    /// Brings flow rules and table to what `change` says: what is stopped in user space first, then the kernel in one
    /// transaction, then what user space may forget. When the kernel refuses, user space is as before.
    func install(_ change: SessionChange, undoneBy undo: @autoclosure () -> SessionChange) throws {
        do {
            try numberTranslations(of: change.setFlows)
            try post(change.setFlows.map { .set($0.key, $0.rule) })
            let tableChange = claim(change)
            do {
                try table.apply(tableChange)
            } catch {
                release(change)
                throw error
            }
        } catch {
            // Whoever wants the change may have written it down already.
            table.loseTrack()
            let undo = undo()
            // Every thread is told, also when one of them does not answer: none may keep a rule that nobody knows of.
            let undoing: [FlowChange] =
                undo.setFlows.map { .set($0.key, $0.rule) } + removals(undo)
            for queue in queues { queue.postInAnyCase(undoing) }
            throw error
        }
        // The change is made: that a thread is late must not look like a refusal, after which the callers would take back what
        // they have written down, or make the change once more.
        let removals = removals(change)
        for queue in queues where !removals.isEmpty { queue.postInAnyCase(removals) }
    }

    private static func translations(of sessions: [Session]) -> Set<Translation> {
        var translations: Set<Translation> = []
        var last: Translation?
        for session in sessions {
            session.forEachFlow { _, rule in
                // One session after the other has the same, mostly.
                guard let translation = rule.translation, translation != last else { return }
                last = translation
                translations.insert(translation)
            }
        }
        return translations
    }

    /// The elements by which the kernel translates.
    var translationElements: [TableElement] { translations.marks.keys.flatMap { translations.elements(of: $0) } }

    /// Makes the translations of new rules known, to the kernel first: a packet must not come with a mark that says nothing.
    private func numberTranslations(of flows: [(key: FlowKey, rule: FlowRule)]) throws {
        guard treatment == .mark else { return }
        let new = try translations.number(flows.lazy.compactMap(\.rule.translation))
        if new.isEmpty { return }
        do {
            try table.apply(TableChange(adding: new.flatMap { translations.elements(of: $0) }))
        } catch {
            translations.forget(new)
            throw error
        }
        try post(new.compactMap { translation in translations.marks[translation].map { .mark($0, of: translation) } })
    }

    /// Takes numbers back that no session needs, when nothing is left of any, and otherwise once they are many. No packet
    /// is on its way with one: the queue threads have acknowledged that its rules are gone.
    func tidyTranslations(nothingIsLeft: Bool, inUse: () -> Set<Translation>) {
        let count = translations.marks.count
        guard count > (nothingIsLeft ? 0 : translationsBeforeTidying), count != untidyCount else { return }
        let used = nothingIsLeft ? [] : inUse()
        let unused = translations.marks.keys.filter { !used.contains($0) }
        translationsBeforeTidying = max(Self.fewTranslations, 2 * used.count)
        // A rule that could not be removed must not write what a number means next.
        let marks = unused.map { ($0, translations.marks[$0] ?? 0) }
        do {
            try post(marks.map { .mark(0, of: $0.0) })
            try table.apply(TableChange(remove: unused.flatMap { translations.elements(of: $0) }))
        } catch {
            guard (try? table.exists) == false else {
                // What cannot be removed now keeps its number, also for the threads that have forgotten it.
                for queue in queues { try? queue.postWithoutWaiting(marks.map { .mark($0.1, of: $0.0) }) }
                return untidyCount = count
            }
        }
        translations.forget(unused)
    }

    /// What user space may forget: not the rule that holds a client's SYNs while other sessions need it.
    private func removals(_ change: SessionChange) -> [FlowChange] {
        change.removedFlows.compactMap { key in
            let (client, home) = (key.tuple.source, key.tuple.destination)
            let isCredit = key.stage == .prerouting && client.port == 0
            let isShared = isCredit && shared[.credit(client: client.address, home: home)] != nil
            return isShared ? nil : .remove(key)
        }
    }

    /// Only for a daemon that starts: counts what sessions share, without changing the table.
    func adopt(_ sessions: some Sequence<Session>) {
        var counted = SharedElements()
        for session in sessions { counted.forEachElement(of: session) { _, _ in } }
        shared = counted.result()
    }

    /// Whether any session needs this shared element.
    func isWanted(_ element: TableElement) -> Bool { shared[element] != nil }

    /// Sends flow changes to every queue thread and waits until all have taken them.
    func post(_ changes: [FlowChange]) throws {
        if changes.isEmpty { return }
        for queue in queues { try queue.post(changes) }
    }

    /// The table change for a session's change: an element that another session needs as well stays.
    private func claim(_ change: SessionChange) -> TableChange {
        var tableChange = TableChange()
        // Of no home without a binding of datapath `queue` the kernel carries a connection: neither before the change nor after it.
        let homes = change.turnedHomes.union(change.turned.lazy.map(\.destination.address))
        var carried = homes.filter { shared[.icmpHome($0)] != nil }
        for element in change.removedElements where !element.isShared || decrement(element) == 0 {
            tableChange.remove.append(element)
        }
        for (element, lifetime) in change.addedElements where !element.isShared || increment(element) == 1 {
            tableChange.add.append(.init(element: element, lifetime: lifetime))
        }
        carried.formUnion(homes.filter { shared[.icmpHome($0)] != nil })
        tableChange.forget = change.turned.filter { carried.contains($0.destination.address) }
        tableChange.forgetsAll = !change.turnedHomes.isDisjoint(with: carried)
        return tableChange
    }

    private func release(_ change: SessionChange) {
        for element in change.removedElements where element.isShared { _ = increment(element) }
        for (element, _) in change.addedElements where element.isShared { _ = decrement(element) }
    }

    /// Lets elements go, in `lifetime` seconds, that packets have added and nothing needs. A packet that the kernel learns from
    /// renews them for days. To take them away at once would leave a connection without its reply that begins at this moment.
    ///
    /// - Parameter connections: client → home, as far as known, of the replies among them. Their client's next packet is
    ///   judged: if there is one after all, the kernel learns its reply from it.
    func letGo(
        _ elements: [TableElement], of connections: [FourTuple], in lifetime: UInt32
    ) throws(TableError) {
        var change = TableChange(remove: elements, add: elements.map { .init(element: $0, lifetime: lifetime) })
        change.forget = Set(connections)
        try table.apply(change)
        // A service's client was counted when it was adopted, or moved.
        for element in elements where element.isShared { shared[element] = nil }
    }

    /// Lets them stand again as long as any, whatever has become of them.
    func keep(learnt elements: [TableElement]) throws(TableError) {
        try table.apply(TableChange(remove: elements, add: elements.map { .init(element: $0) }))
    }

    private func increment(_ element: TableElement) -> Int {
        let count = shared[element, default: 0] + 1
        shared[element] = count
        return count
    }

    private func decrement(_ element: TableElement) -> Int {
        let count = max(0, shared[element, default: 0] - 1)
        shared[element] = count == 0 ? nil : count
        return count
    }
}

/// What the queue threads are to know from the start. The first that asks makes it of the sessions, and it is gone when all
/// have it: the threads outlive the need for it by far.
private final class InitialFlows: Sendable {
    private struct State {
        var sessions: [Session]
        var flows: [(key: FlowKey, rule: FlowRule)] = []
        var takers: UInt16
    }

    private let state: Mutex<State>

    init(of sessions: [Session], takers: UInt16) { state = Mutex(State(sessions: sessions, takers: takers)) }

    func take() -> [(key: FlowKey, rule: FlowRule)] {
        state.withLock { state in
            if !state.sessions.isEmpty { state.flows = Self.flows(of: state.sessions) }
            state.sessions = []
            state.takers -= 1
            let flows = state.flows
            if state.takers == 0 { state.flows = [] }
            return flows
        }
    }

    /// What a client's sessions share is there once.
    private static func flows(of sessions: [Session]) -> [(key: FlowKey, rule: FlowRule)] {
        var flows: [(key: FlowKey, rule: FlowRule)] = []
        flows.reserveCapacity(2 * sessions.count)
        var ofAnyPort: Set<FlowKey> = []
        for session in sessions {
            session.forEachFlow { key, rule in
                if key.tuple.source.port != 0 || ofAnyPort.insert(key).inserted { flows.append((key, rule)) }
            }
        }
        return flows
    }
}

extension TableElement {
    /// Whether several sessions can want the same element.
    package var isShared: Bool {
        switch self {
        case .involved, .answering, .icmpHome, .icmpPeer, .credit: true
        default: false
        }
    }

    /// Whether it says what the kernel writes for a mark.
    var isOfTranslation: Bool {
        switch self {
        case .endpointAddress, .endpointPort, .clientPort: true
        default: false
        }
    }

    /// Whether it is in a set that packets fill.
    var isLearnt: Bool {
        switch self {
        case .reply, .icmpPeer: true
        default: false
        }
    }
}
