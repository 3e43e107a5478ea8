// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc
public import Ruleset

/// Our nftables table in the kernel: made once, adopted by a daemon that starts again, and changed by elements only, and by
/// the rules that look for the first of some (`Entrances`).
/// Nothing outside the table is touched. It works in the network namespace of the thread that makes this object, and
/// belongs to one thread at a time.
public final class NetfilterTable {
    /// What `establish` found and did.
    public enum Establishment: Hashable, Sendable {
        /// There was no table of that name; now there is.
        case created
        /// There was the same table. It, its elements and the packets in its queues have not been touched.
        case adopted
        /// There was another table of that name. It has been replaced; its elements are gone.
        case replaced(reason: String)
    }

    /// The table as it is, or would be, in the kernel.
    public let ruleset: Ruleset
    /// How the kernel's table queues packets; nil until `establish`.
    public private(set) var queueStatement: QueueStatement?

    /// The generation of nf_tables in which the table was as this object's changes, and nobody else's, have left it; nil
    /// when that is not known. Every transaction of any program makes the next generation; what packets add and time-outs
    /// remove does not.
    public private(set) var generation: UInt32?
    /// What the latest transaction of this object has made; nil before the first.
    public private(set) var latestGeneration: UInt32?

    /// The kernel's own number of the table that was made or adopted; nil when it is to be read.
    var number: UInt64?
    /// The generation in which all of the table's rules have been there; nil when that is not known.
    var wholeGeneration: UInt32?

    /// What the rules at the entrances depend on; nil until somebody has to know, and after a change that has failed.
    private(set) var entrances: Entrances?

    /// Whether the kernel takes a removal of what may not be there; assumed until it refuses one.
    private var canDestroy: Bool

    let socket: NetlinkSocket
    private var sequence: UInt32 = 1

    /// Opens a socket; changes nothing.
    ///
    /// - Parameter canDestroy: whether to try NFT_MSG_DESTROYSETELEM at all; false is for who knows better, or wants to do
    ///   as on a kernel before 6.3.
    /// - Throws: `NetlinkError` with operation `.openSocket`.
    public init(_ options: RulesetOptions, canDestroy: Bool = true) throws(NetlinkError) {
        self.canDestroy = canDestroy
        ruleset = Ruleset(options)
        socket = try NetlinkSocket()
        socket.prepareForTransactions()
    }

    /// Makes sure that the table is in the kernel, in one transaction; leaves it alone if the same table is there
    /// already. The queue statement is nf_tables' own where the kernel has it, and else the xt target.
    ///
    /// - Parameters:
    ///   - additions: elements that a created or replaced table has from the first moment. An adopted table does not get them.
    ///   - anew: whether to replace the same table, too.
    /// - Throws: `TableError`; then nothing has changed. EPERM: the capability CAP_NET_ADMIN is missing.
    public func establish(
        carrying elements: @autoclosure () -> [TableChange.Addition] = [], anew: Bool = false
    ) throws(TableError) -> Establishment {
        var attempts = 0
        while true {
            attempts += 1
            let found = try wrap { () throws(NetlinkError) in try readTable() }
            if let found, found.comment == ruleset.comment, !anew {
                number = found.number
                wholeGeneration = nil
                queueStatement = try wrap { () throws(NetlinkError) in try readQueueStatement() }
                entrances = nil
                return .adopted
            }
            let additions = elements()
            // Another program may make or delete the table between our look and our transaction.
            if try create(replacing: found != nil, additions, mayRepeat: attempts < 5) {
                number = (try? readTable())?.number
                guard let found else { return .created }
                if anew { return .replaced(reason: "it was to be made anew") }
                let name = found.comment.map { "“\($0)”" } ?? "no comment"
                return .replaced(
                    reason: "the table \(ruleset.tableName) had \(name) where this version writes “\(ruleset.comment)”")
            }
        }
    }

    /// Changes elements in one transaction and waits for the kernel's answer: afterwards every packet meets all of the
    /// change. On an error nothing has changed. There is no limit on the number of elements.
    ///
    /// - Throws: `TableError`. ENOENT: there is no table; EEXIST: an added element is there with another value; ENFILE:
    ///   a set is full.
    public func apply(_ change: TableChange) throws(TableError) {
        do throws(TableError) {
            try carryOut(change)
            if entrances == nil, Entrances.concern(change) {
                // Somebody else has changed nf_tables, and perhaps those very rules that this change relies on.
                try carryOut(.renewalOfEntrances)
            }
        } catch {
            // The caller wanted something else than what is there.
            generation = nil
            entrances = nil
            throw error
        }
    }

    /// Takes note of a change that is about to be made.
    ///
    /// - Returns: the chains that are to be written with it, since their rules will be others, or are not what they should be.
    private func chainsChanged(by change: TableChange) throws(TableError) -> [Chain] {
        guard Entrances.concern(change) || change.renewsEntrances else { return [] }
        // Whoever has changed the table meanwhile may have taken the rules away.
        let isCertain = entrances != nil && !change.renewsEntrances
        if entrances == nil { entrances = try wrap { () throws(NetlinkError) in try readEntrances() } }
        let before = entrances?.open
        entrances?.apply(change)
        guard let open = entrances?.open, open != before || !isCertain else { return [] }
        if isCertain, let before {
            let standing = Ruleset.chains(open: before)
            return Ruleset.chains(open: open).filter { !standing.contains($0) }
        }
        let found = try wrap { () throws(NetlinkError) in try readRules() }
        return Ruleset.chains(open: open).filter { !found.agree(with: $0) }
    }

    private func carryOut(_ change: TableChange) throws(TableError) {
        if change.isEmpty { return }
        let removed =
            try change.remove.map { (element) throws(TableError) in try TableError.form(of: element) }
            + (ruleset.carries ? change.forgotten() : [])
        let added = try change.add.map { (addition) throws(TableError) in try TableError.form(of: addition.element) }
        var removals = removed.map(removal)
        let chains = try chainsChanged(by: change)
        // Each step is taken once, so this ends.
        while true {
            var batch = NftBatch(firstSequence: sequence)
            var origins: [Origin] = [.frame]
            for (index, form) in removed.enumerated() {
                if removals[index] == .addAndDelete {
                    write(form, NFT_MSG_NEWSETELEM, to: &batch)
                    origins.append(.removal(index, isDeletion: false))
                }
                if removals[index] != .nothing {
                    write(form, removals[index] == .destroy ? .destroySetElement : NFT_MSG_DELSETELEM, to: &batch)
                    origins.append(.removal(index, isDeletion: true))
                }
            }
            for (index, form) in added.enumerated() {
                write(form, NFT_MSG_NEWSETELEM, lifetime: change.add[index].lifetime, to: &batch)
                origins.append(.addition(index))
            }
            if ruleset.carries, change.forgetsAll || change.endsTranslations { flushCarried(in: &batch) }
            if !chains.isEmpty {
                // The statement that queues is in none of these chains.
                var encoder = NftRulesetEncoder(ruleset, queueStatement: .native)
                encoder.writeAnew(chains, to: &batch)
            }
            if batch.messageCount == 1 { return }

            let failures = try wrap { () throws(NetlinkError) in try transact(&batch, for: .changeTable) }
            if failures.isEmpty { return }
            let refused = Set(failures.map(\.index))
            let attempted = removals
            for failure in failures {
                let origin = origins.indices.contains(failure.index) ? origins[failure.index] : .frame
                switch (origin, failure.errno) {
                case (.removal(let index, isDeletion: true), EINVAL) where attempted[index] == .destroy,
                    (.removal(let index, isDeletion: true), EOPNOTSUPP) where attempted[index] == .destroy:
                    // A kernel older than 6.3.
                    canDestroy = false
                    removals[index] = removal(removed[index])
                case (.removal(let index, isDeletion: false), EEXIST), (.removal(let index, isDeletion: false), EBUSY),
                    (.removal(let index, isDeletion: false), ENFILE):
                    removals[index] = .delete
                case (.removal(let index, isDeletion: true), ENOENT) where attempted[index] == .delete:
                    removals[index] = .nothing
                case (.removal(_, isDeletion: true), ENOENT) where refused.contains(failure.index - 1):
                    // The deletion of an element whose addition, the message before, is dealt with above.
                    continue
                default:
                    throw .kernel(
                        NetlinkError(operation: .changeTable, errno: failure.errno),
                        element: origin.element(in: change))
                }
            }
        }
    }

    /// How the removal of an element begins. Where the kernel cannot destroy what may be missing, the element is first
    /// added (nothing happens when it is there) and then deleted. When adding fails, since another value is there or the
    /// set is full, deleting alone is tried; when that fails, it is not there.
    private func removal(_ form: ElementForm) -> Removal {
        // What a mark is learnt for has a value that nobody here knows.
        canDestroy ? .destroy : form.set.purpose.isOfMarks ? .delete : .addAndDelete
    }

    /// Lets the kernel forget all that it carries by itself: user space will say it anew.
    private func flushCarried(in batch: inout NftBatch) {
        for name in SetName.ofMarks {
            // Without an element it stands for all (nf_tables_delsetelem).
            let set = NftSet(table: ruleset.tableName, name: name.description)
            unsafe batch.append(NFT_MSG_DELSETELEM) { unsafe set.writeElements(to: $0) }
        }
    }

    /// Deletes the table with all elements, in one transaction; packets in its queues are dropped. Succeeds when there
    /// is none.
    public func remove() throws(NetlinkError) {
        var batch = NftBatch(firstSequence: sequence)
        let table = NftTable(name: ruleset.tableName)
        unsafe batch.append(NFT_MSG_DELTABLE) { unsafe table.write(to: $0) }
        let failures = try transact(&batch, for: .deleteTable)
        if let failure = failures.first, failure.errno != ENOENT {
            throw NetlinkError(operation: .deleteTable, errno: failure.errno)
        }
        queueStatement = nil
        entrances = nil
    }

    /// Whether there is a table of this name, ours or not.
    public var exists: Bool {
        get throws(NetlinkError) { try readTable() != nil }
    }

    /// From this generation on the table is known: it was as it is to be then, or is about to be compared.
    public func keepTrack(from generation: UInt32?) { self.generation = generation }

    /// What is in the table is no longer what somebody believes.
    public func loseTrack() { generation = nil }

    // MARK: - Transactions

    /// One attempt to create the table. False when it met another program's change and should be repeated. `grouped`:
    /// elements of one set share messages, which costs less and does not tell which one was refused.
    private func create(
        replacing: Bool, _ additions: [TableChange.Addition], mayRepeat: Bool,
        grouped: Bool = true
    ) throws(TableError) -> Bool {
        var statements = [QueueStatement.native, .xtTarget]
        // A kernel without the first would add all elements in vain.
        if additions.count >= NftRulesetEncoder.crowd, try !wrap({ () throws(NetlinkError) in try canQueueNatively() })
        {
            statements.removeFirst()
        }
        for statement in statements {
            var batch = NftBatch(firstSequence: sequence)
            if replacing {
                let old = NftTable(name: ruleset.tableName)
                unsafe batch.append(NFT_MSG_DELTABLE) { unsafe old.write(to: $0) }
            }
            var encoder = NftRulesetEncoder(ruleset, queueStatement: statement, carrying: additions)
            let entrances = Entrances(additions.lazy.map(\.element))
            encoder.write(to: &batch, open: entrances.open)
            let firstElement = Int(batch.messageCount)
            try write(additions, perMessage: grouped ? 100 : 1, to: &batch)
            let queueRule = encoder.queueRuleSequence.map { Int($0 &- batch.firstSequence) }
            let failures = try wrap { () throws(NetlinkError) in try transact(&batch, for: .createTable) }
            guard let failure = failures.first else {
                queueStatement = statement
                self.entrances = entrances
                wholeGeneration = latestGeneration
                return true
            }
            // The first message is the deletion or the creation of the table.
            if failure.index == 1, mayRepeat, failure.errno == (replacing ? ENOENT : EEXIST) { return false }
            if statement == .native, failure.errno == ENOENT, failure.index == queueRule { continue }
            if grouped, failure.index >= firstElement {
                return try create(replacing: replacing, additions, mayRepeat: mayRepeat, grouped: false)
            }
            let element =
                additions.indices.contains(failure.index - firstElement)
                ? additions[failure.index - firstElement].element : nil
            throw .kernel(NetlinkError(operation: .createTable, errno: failure.errno), element: element)
        }
        return false
    }

    /// Whether the kernel has nf_tables' own queue statement: from a transaction that it refuses in any case.
    private func canQueueNatively() throws(NetlinkError) -> Bool {
        var batch = NftBatch(firstSequence: sequence)
        var encoder = NftRulesetEncoder(ruleset, queueStatement: .native)
        encoder.writeTrial(to: &batch)
        let queueRule = encoder.queueRuleSequence.map { Int($0 &- batch.firstSequence) }
        return try transact(&batch, for: .createTable).allSatisfy { $0.index != queueRule }
    }

    /// Adds elements, up to `perMessage` neighbours of one set in one message.
    private func write(
        _ additions: [TableChange.Addition], perMessage: Int, to batch: inout NftBatch
    ) throws(TableError) {
        var rest = additions[...]
        var next = try rest.first.map { (addition) throws(TableError) in try TableError.form(of: addition.element) }
        while let first = next {
            let set = NftSet(table: ruleset.tableName, name: first.set.description)
            var count = 0
            while let form = next, form.set == first.set, count < perMessage, let addition = rest.popFirst() {
                set.append(Self.element(form, lifetime: addition.lifetime))
                count += 1
                next = try rest.first.map { (addition) throws(TableError) in try TableError.form(of: addition.element) }
            }
            unsafe batch.append(NFT_MSG_NEWSETELEM, flags: NLM_F_CREATE) { unsafe set.writeElements(to: $0) }
        }
    }

    private func write(
        _ form: ElementForm, _ type: nf_tables_msg_types, lifetime: UInt32? = nil, to batch: inout NftBatch
    ) {
        let set = NftSet(table: ruleset.tableName, name: form.set.description)
        let isNew = type == NFT_MSG_NEWSETELEM
        set.append(isNew ? Self.element(form, lifetime: lifetime) : NftElement(key: form.key))
        unsafe batch.append(type, flags: isNew ? NLM_F_CREATE : 0) { unsafe set.writeElements(to: $0) }
    }

    private static func element(_ form: ElementForm, lifetime: UInt32?) -> NftElement {
        let element = NftElement(key: form.key)
        switch form.value {
        case .none: break
        case .octets(let octets): element.setData(octets)
        }
        if let lifetime { element.setTimeout(milliseconds: UInt64(lifetime) * 1000) }
        return element
    }

    /// Sends a transaction and collects the kernel's answers.
    ///
    /// - Returns: what failed, in the order of the messages; empty when the transaction has been made.
    private func transact(
        _ batch: inout NftBatch, for operation: NetlinkError.Operation
    ) throws(NetlinkError) -> [TransactionFailure] {
        let last = batch.end()
        sequence = last &+ 2
        let first = batch.firstSequence
        while true {
            let outcome = try unsafe batch.withOctets { (octets) throws(NetlinkError) in
                try unsafe socket.transact(octets, for: operation)
            }
            let answers = outcome.answers
            let failures = answers.filter { $0.errno != 0 }
                .map { TransactionFailure(index: Int($0.sequence &- first), errno: $0.errno) }
            // Interrupted by a signal or by another program's transaction: nothing has happened.
            if failures.contains(where: { $0.errno == EINTR || $0.errno == ERESTART }) { continue }
            if failures.isEmpty, !answers.contains(where: { $0.sequence == last }) {
                throw NetlinkError(operation: operation, errno: ETIMEDOUT)
            }
            if let next = outcome.generation {
                // Anybody else's transaction since the last of ours shows as a gap.
                if let known = generation, next != NetfilterTable.generation(after: known) { generation = nil }
                if let known = latestGeneration, next != NetfilterTable.generation(after: known) { entrances = nil }
                if let known = wholeGeneration, next == NetfilterTable.generation(after: known) {
                    wholeGeneration = next
                }
                if generation != nil { generation = next }
                latestGeneration = next
            }
            return failures.sorted { $0.index < $1.index }
        }
    }

    /// The kernel passes over 0 (nf_tables_commit).
    private static func generation(after generation: UInt32) -> UInt32 { generation == .max ? 1 : generation + 1 }

    func nextSequence() -> UInt32 {
        defer { sequence &+= 1 }
        return sequence
    }

    private func wrap<Result>(_ body: () throws(NetlinkError) -> Result) throws(TableError) -> Result {
        do {
            return try body()
        } catch {
            throw .kernel(error, element: nil)
        }
    }
}

extension nf_tables_msg_types {
    /// NFT_MSG_DESTROYSETELEM (kernel 6.3, include/uapi/linux/netfilter/nf_tables.h), which older headers do not have.
    fileprivate static let destroySetElement = nf_tables_msg_types(30)
}

/// A message of a transaction that the kernel refused.
private struct TransactionFailure {
    /// Which message; 0 is the beginning of the transaction.
    let index: Int
    let errno: Int32
}

/// How an element is being removed.
private enum Removal {
    case destroy
    case addAndDelete
    case delete
    case nothing
}

/// What a message of a change is there for.
private enum Origin {
    case frame
    case removal(Int, isDeletion: Bool)
    case addition(Int)

    func element(in change: TableChange) -> TableElement? {
        switch self {
        case .frame: nil
        case .removal(let index, _): change.remove.indices.contains(index) ? change.remove[index] : nil
        case .addition(let index): change.add[index].element
        }
    }
}
