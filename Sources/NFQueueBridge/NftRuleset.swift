// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Ruleset
internal import Wire

/// How the kernel is told to queue a packet; the meaning is the same.
public enum QueueStatement: Hashable, Sendable {
    /// nf_tables' own expression `queue` (CONFIG_NFT_QUEUE).
    case native
    /// The xt target NFQUEUE through nft_compat, for kernels without the expression.
    case xtTarget
}

/// Encodes the whole table as messages of one transaction.
struct NftRulesetEncoder {
    private let ruleset: Ruleset
    private let queueStatement: QueueStatement
    /// How many elements are many.
    static let crowd = 1000
    /// How many elements a set is to have from the start, where these are many.
    private var expected: [SetName: Int] = [:]
    /// Number of the next anonymous set within the transaction.
    private var nextSetID: UInt32 = 1
    /// Sequence number of the message with the queue statement, once written.
    private(set) var queueRuleSequence: UInt32?

    /// `additions`: what the transaction adds to the table's sets once it has made them.
    init(_ ruleset: Ruleset, queueStatement: QueueStatement, carrying additions: [TableChange.Addition] = []) {
        self.ruleset = ruleset
        self.queueStatement = queueStatement
        if additions.count < Self.crowd { return }
        for addition in additions { expected[addition.element.set, default: 0] += 1 }
        expected = expected.filter { $0.value >= Self.crowd }
    }

    /// Adds the messages that create the table with these entrances open. They fail with EEXIST when there is one of this
    /// name.
    mutating func write(to batch: inout NftBatch, open: Set<SetName>) {
        let table = NftTable(name: ruleset.tableName)
        table.setComment(ruleset.comment)
        unsafe batch.append(NFT_MSG_NEWTABLE, flags: NLM_F_CREATE | NLM_F_EXCL) { unsafe table.write(to: $0) }
        for set in ruleset.sets { write(set, to: &batch) }
        // All chains before the first rule: rules name chains.
        let entrances = Ruleset.chains(open: open)
        let chains = ruleset.chains.compactMap { chain in
            entrances.first { $0.name == chain.name } ?? (ChainName.ofNAT.contains(chain.name) ? nil : chain)
        }
        for chain in chains { write(chain, to: &batch) }
        for chain in chains {
            for rule in chain.rules { write(rule, of: chain.name, in: ruleset.tableName, to: &batch) }
        }
    }

    /// Adds messages that make these chains, where they are missing, empty them, and fill them.
    mutating func writeAnew(_ chains: [Chain], to batch: inout NftBatch) {
        for chain in chains {
            write(chain, to: &batch)
            // Without a handle it stands for all rules of the chain (nf_tables_delrule).
            let rules = NftRule(table: ruleset.tableName, chain: chain.name.rawValue)
            unsafe batch.append(NFT_MSG_DELRULE) { unsafe rules.write(to: $0) }
            for rule in chain.rules { write(rule, of: chain.name, in: ruleset.tableName, to: &batch) }
        }
    }

    /// Adds messages that make a table with nothing but the chain that queues, and one more, which fails.
    mutating func writeTrial(to batch: inout NftBatch) {
        let name = ruleset.tableName + "-trial"
        let table = NftTable(name: name)
        let chain = NftChain(table: name, name: ChainName.enqueue.rawValue)
        unsafe batch.append(NFT_MSG_NEWTABLE, flags: NLM_F_CREATE | NLM_F_EXCL) { unsafe table.write(to: $0) }
        unsafe batch.append(NFT_MSG_NEWCHAIN, flags: NLM_F_CREATE) { unsafe chain.write(to: $0) }
        for statements in ruleset.chains.first(where: { $0.name == .enqueue })?.rules ?? [] {
            write(statements, of: .enqueue, in: name, to: &batch)
        }
        let absent = NftTable(name: name + "-absent")
        unsafe batch.append(NFT_MSG_DELTABLE) { unsafe absent.write(to: $0) }
    }

    private mutating func write(_ definition: NamedSet, to batch: inout NftBatch) {
        let set = NftSet(table: ruleset.tableName, name: definition.name.description)
        var flags = NFT_SET_TIMEOUT.rawValue
        switch definition.value {
        case .none: break
        case .data(let types):
            flags |= NFT_SET_MAP.rawValue
            set.set(NFTNL_SET_DATA_TYPE, types.typeNumber)
            set.set(NFTNL_SET_DATA_LEN, types.length)
        }
        if definition.isDynamic { flags |= NFT_SET_EVAL.rawValue }
        set.set(NFTNL_SET_FLAGS, flags)
        set.set(NFTNL_SET_KEY_TYPE, definition.key.typeNumber)
        set.set(NFTNL_SET_KEY_LEN, definition.key.length)
        set.set(NFTNL_SET_ID, takeSetID())
        if definition.key == [.mark] { set.setKeysInHostOrder() }
        if let size = definition.size ?? expected[definition.name].map(Self.roomyLimit) {
            set.set(NFTNL_SET_DESC_SIZE, size)
        }
        if let timeout = definition.timeout { set.setTimeout(milliseconds: UInt64(timeout) * 1000) }
        unsafe batch.append(NFT_MSG_NEWSET, flags: NLM_F_CREATE) { unsafe set.write(to: $0) }
    }

    private func write(_ definition: Chain, to batch: inout NftBatch) {
        let chain = NftChain(table: ruleset.tableName, name: definition.name.rawValue)
        if let hook = definition.hook {
            chain.setHook(type: hook.kind.rawValue, number: hook.point.rawValue, priority: hook.priority)
        }
        unsafe batch.append(NFT_MSG_NEWCHAIN, flags: NLM_F_CREATE) { unsafe chain.write(to: $0) }
    }

    private mutating func write(
        _ statements: [Statement], of chain: ChainName, in table: String, to batch: inout NftBatch
    ) {
        var anonymousSets: [AddressFamily: UInt32] = [:]
        for case .isICMPError(let family) in statements {
            anonymousSets[family] = writeErrorTypes(family, to: &batch)
        }
        let rule = NftRule(table: table, chain: chain.rawValue)
        var encoder = NftRuleEncoder(queueStatement: queueStatement, anonymousSets: anonymousSets)
        for statement in statements {
            if case .queue = statement { queueRuleSequence = batch.nextSequence }
            encoder.write(statement, to: rule)
        }
        unsafe batch.append(NFT_MSG_NEWRULE, flags: NLM_F_CREATE | NLM_F_APPEND) { unsafe rule.write(to: $0) }
    }

    /// The anonymous set of a rule's ICMP types; the kernel names it and deletes it with the rule.
    private mutating func writeErrorTypes(_ family: AddressFamily, to batch: inout NftBatch) -> UInt32 {
        let types = Statement.icmpErrorTypes(family).map(\.type)
        let id = takeSetID()
        let set = NftSet(table: ruleset.tableName, name: NftRuleEncoder.anonymousName)
        set.set(NFTNL_SET_FLAGS, NFT_SET_ANONYMOUS.rawValue | NFT_SET_CONSTANT.rawValue)
        // TYPE_ICMP_TYPE and TYPE_ICMP6_TYPE of nftables' enum datatypes.
        set.set(NFTNL_SET_KEY_TYPE, family == .ipv4 ? 14 : 29)
        set.set(NFTNL_SET_KEY_LEN, 1)
        set.set(NFTNL_SET_ID, id)
        set.set(NFTNL_SET_DESC_SIZE, UInt32(types.count))
        unsafe batch.append(NFT_MSG_NEWSET, flags: NLM_F_CREATE) { unsafe set.write(to: $0) }
        for type in types { set.append(NftElement(key: [type])) }
        unsafe batch.append(NFT_MSG_NEWSETELEM, flags: NLM_F_CREATE) { unsafe set.writeElements(to: $0) }
        return id
    }

    /// A limit that nobody reaches, and that makes the kernel's hash table large enough for `count` elements at once. Left to
    /// itself, the table begins with four places and doubles in a work queue of the very processor that fills it: while
    /// that is busy, every insertion searches all generations of it. The kernel's hint is the limit's low 16 bits
    /// (nft_rhash_init; nelem_hint of struct rhashtable_params).
    private static func roomyLimit(for count: Int) -> UInt32 { 0x3f_0000 | UInt32(min(count, 0xffff)) }

    private mutating func takeSetID() -> UInt32 {
        defer { nextSetID += 1 }
        return nextSetID
    }
}

extension [DataType] {
    /// nft's number of a concatenation: six bits for each part, the first part in the highest.
    fileprivate var typeNumber: UInt32 { reduce(0) { $0 << 6 | $1.rawValue } }

    /// Octets; the parts of a concatenation are padded, a single type is not.
    fileprivate var length: UInt32 {
        count == 1 ? UInt32(self[0].length) : reduce(0) { $0 + UInt32($1.paddedLength) }
    }
}
