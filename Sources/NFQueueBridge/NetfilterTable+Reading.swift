// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc
public import Ruleset
public import Wire

extension NetfilterTable {
    /// All elements that the kernel holds now; elements whose time-out has passed are not among them. Packets may add replies,
    /// and time-outs may remove elements, while this reads.
    ///
    /// - Throws: `NetlinkError`; ENOENT when there is no table.
    public func elements() throws(NetlinkError) -> Set<TableElement> { try elements(of: ownSets) }

    /// The sets without those whose elements are the kernel's own.
    private var ownSets: [NamedSet] { ruleset.sets.filter { !$0.isOfMarks } }

    /// The elements of those sets that packets fill; of what the kernel carries by itself there are none.
    public func learntElements() throws(NetlinkError) -> Set<TableElement> {
        try elements(of: ownSets.filter(\.isDynamic))
    }

    /// The elements by which the table translates.
    public func translations() throws(NetlinkError) -> Set<TableElement> {
        try elements(of: ruleset.sets.filter { $0.key == [.mark] })
    }

    /// Calls `body` with the elements of those sets that packets fill, and with how long ago, in milliseconds, a packet, or
    /// who added it, last renewed each; those excepted that expire within `lifetime` milliseconds. Each set is read once: of
    /// one that changes meanwhile some elements may be missing, and some come twice.
    public func forEachLearnt(
        lasting lifetime: UInt64 = 0, _ body: (_ element: TableElement, _ age: UInt64) -> Void
    ) throws(NetlinkError) {
        for definition in ownSets.filter(\.isDynamic) {
            let most = UInt64(definition.timeout ?? 0) * 1000
            let request = NftSet(table: ruleset.tableName, name: definition.name.description)
            // Other transactions make no difference to an element that is there: NLM_F_DUMP_INTR is no reason to begin again.
            try unsafe ask(NFT_MSG_GETSETELEM, flags: NLM_F_DUMP) {
                unsafe request.writeElements(to: $0)
            } read: { message in
                unsafe Self.forEachElement(in: message, of: definition.name) { element, remaining in
                    if remaining >= lifetime { body(element, most - min(remaining, most)) }
                }
            }
        }
    }

    private func elements(of sets: [NamedSet]) throws(NetlinkError) -> Set<TableElement> {
        var all: Set<TableElement> = []
        for definition in sets { try read(definition.name) { all.insert($0).inserted ? .unknown : .known } }
        return all
    }

    /// Whether the reader of an element knew that it is there.
    public enum Familiarity {
        case known
        case unknown
    }

    /// Calls `note` with all elements, set by set, as `elements` returns them. One may come again.
    public func forEachElement(_ note: (TableElement) -> Familiarity) throws(NetlinkError) {
        for definition in ownSets { try read(definition.name, note) }
    }

    /// What the rules at the entrances depend on. Of a table that is not there: nothing.
    func readEntrances() throws(NetlinkError) -> Entrances {
        do throws(NetlinkError) {
            var translating: Set<SetName> = []
            for name in SetName.ofNAT where try hasElements(name) { translating.insert(name) }
            let sets = ruleset.sets.filter { SetName.entrances.contains($0.name) }
            return Entrances(try elements(of: sets), translating: translating)
        } catch {
            if error.errno == ENOENT { return Entrances([]) }
            throw error
        }
    }

    /// Whether there is anything in this set.
    private func hasElements(_ name: SetName) throws(NetlinkError) -> Bool {
        let request = NftSet(table: ruleset.tableName, name: name.description)
        var isEmpty = true
        // The rest of a long answer stays unread, so it goes with a socket of its own.
        try unsafe ask(NFT_MSG_GETSETELEM, flags: NLM_F_DUMP, through: try NetlinkSocket()) {
            unsafe request.writeElements(to: $0)
        } read: { message in
            unsafe Self.forEachElement(in: message, of: name) { _, _ in isEmpty = false }
        } isEnough: {
            !isEmpty
        }
        return !isEmpty
    }

    /// The kernel's hash table may be growing while it is dumped. A dump of several messages goes on after so-and-so
    /// many elements of an order that is another by then, and misses some (nft_rhash_walk counts `skip`). So such a
    /// dump is repeated until two agree, unless nothing is in it that its reader did not know.
    private func read(_ name: SetName, _ note: (TableElement) -> Familiarity) throws(NetlinkError) {
        let (elements, messages) = try dumpElements(of: name)
        var isKnown = true
        for element in elements where note(element) == .unknown { isKnown = false }
        if messages <= 1 || isKnown { return }
        var latest = Set(elements)
        for _ in 0..<10 {
            let again = Set(try dumpElements(of: name).elements)
            if again == latest { return }
            for element in again where !latest.contains(element) { _ = note(element) }
            latest = again
        }
    }

    private func dumpElements(of name: SetName) throws(NetlinkError) -> (elements: [TableElement], messages: Int) {
        let request = NftSet(table: ruleset.tableName, name: name.description)
        var elements: [TableElement] = []
        var messages = 0
        try unsafe dump(NFT_MSG_GETSETELEM) {
            unsafe request.writeElements(to: $0)
        } restart: {
            elements = []
            messages = 0
        } read: { message in
            messages += 1
            unsafe Self.forEachElement(in: message, of: name) { element, _ in elements.append(element) }
        }
        return (elements, messages)
    }

    private static func forEachElement(
        in message: UnsafePointer<nlmsghdr>, of name: SetName,
        _ body: (_ element: TableElement, _ remaining: UInt64) -> Void
    ) {
        let part = NftSet()
        guard unsafe part.readElements(message) else { return }
        part.forEachElement { key, data, remaining in
            let value: ElementForm.Value = data.isEmpty ? .none : .octets(data)
            if let element = ElementForm(set: name, key: key, value: value).element { body(element, remaining) }
        }
    }

    /// Whether this element is in the table now, with this value.
    ///
    /// - Throws: `TableError`; ENOENT when there is no table.
    public func holds(_ element: TableElement) throws(TableError) -> Bool {
        let form = try TableError.form(of: element)
        var isThere = false
        do throws(NetlinkError) {
            try unsafe ask(for: form) { message in
                unsafe Self.forEachElement(in: message, of: form.set) { found, _ in
                    if found == element { isThere = true }
                }
            }
        } catch {
            if error.errno == ENOENT, (try? exists) == true { return false }
            throw .kernel(error, element: element)
        }
        return isThere
    }

    /// Whether the kernel carries segments with this four-tuple, as they arrive, by itself: the client's, or its host's. False when
    /// there is no table.
    public func carries(_ tuple: FourTuple) throws(NetlinkError) -> Bool {
        guard ruleset.carries(tuple.source.address.family) else { return false }
        for purpose in [SetName.Purpose.carried, .carriedReplies] {
            guard let form = try? ElementForm(tuple, in: purpose, for: .divertConnection(tuple)) else { continue }
            if try hasKey(form) { return true }
        }
        return false
    }

    /// Whether a set or map has this key, with any value; false when there is no table.
    private func hasKey(_ form: ElementForm) throws(NetlinkError) -> Bool {
        do throws(NetlinkError) {
            try unsafe ask(for: form) { _ in }
        } catch {
            if error.errno == ENOENT { return false }
            throw error
        }
        return true
    }

    /// Asks for the element with this key. ENOENT: there is none, or no table.
    private func ask(for form: ElementForm, read: (UnsafePointer<nlmsghdr>) -> Void) throws(NetlinkError) {
        let request = NftSet(table: ruleset.tableName, name: form.set.description)
        request.append(NftElement(key: form.key))
        try unsafe ask(
            NFT_MSG_GETSETELEM, flags: NLM_F_ACK, write: { unsafe request.writeElements(to: $0) }, read: read)
    }

    /// The generation of nf_tables in this network namespace: every transaction of any program makes the next one.
    public func readGeneration() throws(NetlinkError) -> UInt32 {
        var generation: UInt32?
        try unsafe ask(NFT_MSG_GETGEN, flags: NLM_F_ACK) { _ in
        } read: { message in
            generation = unsafe NetlinkSocket.generation(in: message)
        }
        guard let generation else { throw NetlinkError(operation: .readTable, errno: ENODATA) }
        return generation
    }

    /// A table of our name, if there is one.
    func readTable() throws(NetlinkError) -> FoundTable? {
        let request = NftTable(name: ruleset.tableName)
        var found: FoundTable?
        do throws(NetlinkError) {
            try unsafe ask(NFT_MSG_GETTABLE, flags: NLM_F_ACK) {
                unsafe request.write(to: $0)
            } read: { message in
                let table = NftTable()
                guard unsafe table.read(message) else { return }
                found = FoundTable(number: table.number, comment: table.comment)
            }
        } catch {
            if error.errno == ENOENT { return nil }
            throw error
        }
        return found
    }

    /// What the rules of each chain of the table look keys up in: no two rules of ours that do so differ in nothing else.
    func readRules() throws(NetlinkError) -> FoundRules {
        let request = NftRule(table: ruleset.tableName)
        var found = FoundRules()
        try unsafe dump(NFT_MSG_GETRULE) {
            unsafe request.write(to: $0)
        } restart: {
            found = FoundRules()
        } read: { message in
            let rule = NftRule()
            guard unsafe rule.read(message), let chain = rule.chain else { return }
            found.sets[chain, default: []].append(rule.lookedUpSets)
        }
        return found
    }

    /// How the table in the kernel queues packets.
    func readQueueStatement() throws(NetlinkError) -> QueueStatement? {
        let request = NftRule(table: ruleset.tableName, chain: ChainName.enqueue.rawValue)
        var statement: QueueStatement?
        try unsafe dump(NFT_MSG_GETRULE) {
            unsafe request.write(to: $0)
        } restart: {
            statement = nil
        } read: { message in
            let rule = NftRule()
            guard unsafe rule.read(message) else { return }
            for name in rule.expressionNames {
                if name == "queue" { statement = .native }
                if name == "target" { statement = .xtTarget }
            }
        }
        return statement
    }

    /// A dump; begins again when another program has changed nf_tables meanwhile (NLM_F_DUMP_INTR).
    private func dump(
        _ type: nf_tables_msg_types, write: (UnsafeMutablePointer<nlmsghdr>) -> Void, restart: () -> Void,
        read: (UnsafePointer<nlmsghdr>) -> Void
    ) throws(NetlinkError) {
        for _ in 0..<100 {
            restart()
            if try unsafe ask(type, flags: NLM_F_DUMP, write: write, read: read) { return }
        }
        throw NetlinkError(operation: .readTable, errno: EINTR)
    }

    /// Sends one request and reads its answers up to the last.
    ///
    /// - Returns: whether the answers belong together.
    @discardableResult
    private func ask(
        _ type: nf_tables_msg_types, flags: Int32, write: (UnsafeMutablePointer<nlmsghdr>) -> Void,
        read: (UnsafePointer<nlmsghdr>) -> Void
    ) throws(NetlinkError) -> Bool {
        try unsafe ask(type, flags: flags, through: socket, write: write, read: read) { false }
    }

    /// The same through a certain socket, up to where it `isEnough`; if that is before the last answer, the socket is of no more use.
    @discardableResult
    private func ask(
        _ type: nf_tables_msg_types, flags: Int32, through socket: borrowing NetlinkSocket,
        write: (UnsafeMutablePointer<nlmsghdr>) -> Void, read: (UnsafePointer<nlmsghdr>) -> Void,
        isEnough: () -> Bool
    ) throws(NetlinkError) -> Bool {
        let sequence = nextSequence()
        let octets = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
        defer { unsafe octets.deallocate() }
        guard let start = unsafe octets.baseAddress?.assumingMemoryBound(to: CChar.self),
            let message = unsafe nftnl_nlmsg_build_hdr(
                start, UInt16(type.rawValue), UInt16(NFPROTO_INET), UInt16(NLM_F_REQUEST | flags), sequence)
        else { return false }
        unsafe write(message)
        try unsafe socket.send(
            UnsafeRawBufferPointer(start: start, count: Int(message.pointee.nlmsg_len)), for: .readTable)

        var isConsistent = true
        try unsafe socket.receiveMessages(for: .readTable) { (answer) throws(NetlinkError) -> Bool in
            guard unsafe answer.pointee.nlmsg_seq == sequence else { return false }
            if unsafe Int32(answer.pointee.nlmsg_flags) & NLM_F_DUMP_INTR != 0 { isConsistent = false }
            if let number = unsafe NetlinkSocket.errorNumber(of: answer) {
                if number == EINTR {
                    isConsistent = false
                } else if number != 0 {
                    throw NetlinkError(operation: .readTable, errno: number)
                }
                return true
            }
            if unsafe Int32(answer.pointee.nlmsg_type) == NLMSG_DONE { return true }
            unsafe read(answer)
            return isEnough()
        }
        return isConsistent
    }
}

/// The rules of a table that is in the kernel.
struct FoundRules {
    /// By the names of chains, for each of its rules the sets and maps that it looks keys up in. Chains without rules are missing.
    var sets: [String: [[String]]] = [:]

    /// Whether a chain is as it is to be, as far as that can be told.
    func agree(with chain: Chain) -> Bool {
        sets[chain.name.rawValue] ?? [] == chain.rules.map { $0.compactMap(\.lookedUp).map(\.description) }
    }
}

/// A table that is in the kernel.
struct FoundTable {
    /// The kernel's own number of it; no other has ever had the same.
    let number: UInt64
    /// What it says of itself, if anything.
    let comment: String?
}
