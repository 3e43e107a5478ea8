// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Ruleset
internal import Wire

/// Encodes the statements of one rule as the expressions that nft makes of them, so that `nft list table` shows the
/// statements again.
struct NftRuleEncoder {
    /// What the kernel replaces by a number of its own.
    static let anonymousName = "__set%d"
    /// The first 32-bit register; a key's fields fill this one and the following.
    private static let firstRegister = UInt32(NFT_REG32_00.rawValue)

    private let queueStatement: QueueStatement
    /// The rule's anonymous set of ICMP types, by family.
    private let anonymousSets: [AddressFamily: UInt32]
    /// What the rule has asked already.
    private var hasFamily = false
    private var hasProtocol = false

    init(queueStatement: QueueStatement, anonymousSets: [AddressFamily: UInt32]) {
        self.queueStatement = queueStatement
        self.anonymousSets = anonymousSets
    }

    mutating func write(_ statement: Statement, to rule: borrowing NftRule) {
        switch statement {
        case .hasMark(let mark):
            load(meta: NFT_META_MARK, to: rule)
            compare(octets(mark), to: rule)
        case .hasMarkBits(let bits, let mask):
            load(meta: NFT_META_MARK, to: rule)
            keep(octets(mask), to: rule)
            compare(octets(bits), to: rule)
        case .isTCP:
            require(protocol: UInt8(IPPROTO_TCP), to: rule)
        case .hasSYN:
            require(protocol: UInt8(IPPROTO_TCP), to: rule)
            load(base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 13, length: 1, into: Self.firstRegister, to: rule)
            keep([TCPFlags.syn.rawValue], to: rule)
            compare([0], NFT_CMP_NEQ, to: rule)
        case .isSYN:
            require(protocol: UInt8(IPPROTO_TCP), to: rule)
            // Octet 13 of the TCP header (RFC 9293 section 3.1).
            load(base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 13, length: 1, into: Self.firstRegister, to: rule)
            keep([(TCPFlags.fin.union(.syn).union(.rst).union(.ack)).rawValue], to: rule)
            compare([TCPFlags.syn.rawValue], to: rule)
        case .isICMPError(let family):
            require(family, to: rule)
            require(protocol: UInt8(family == .ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6), to: rule)
            load(base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 0, length: 1, into: Self.firstRegister, to: rule)
            lookUp(Self.anonymousName, id: anonymousSets[family], to: rule)
        case .isIn(let key, let set):
            load(key, to: rule)
            lookUp(set.description, to: rule)
        case .update(let set, let key):
            load(key, to: rule)
            let expression = NftExpression("dynset")
            expression.set(NFTNL_EXPR_DYNSET_SREG_KEY, Self.firstRegister)
            expression.set(NFTNL_EXPR_DYNSET_OP, UInt32(NFT_DYNSET_OP_UPDATE.rawValue))
            expression.set(NFTNL_EXPR_DYNSET_SET_NAME, set.description)
            rule.append(expression)
        case .remember(let map, let key):
            keepMark(of: key, in: map, NFT_DYNSET_OP_UPDATE, MarkLayout.remembered, to: rule)
        case .forget(let map, let key): keepMark(of: key, in: map, NFT_DYNSET_OP_DELETE, nil, to: rule)
        case .recall(let key, let map):
            load(key, to: rule)
            lookUp(map.description, into: Self.firstRegister, to: rule)
            setMark(to: rule)
        case .translateDestination(let key, let map):
            load(key, to: rule)
            lookUp(map.description, into: Self.firstRegister, to: rule)
            translate(NFT_NAT_DNAT, key.family, to: rule)
        case .translateSource(let family, let map):
            require(protocol: UInt8(IPPROTO_TCP), to: rule)
            loadOriginal(family, to: rule)
            lookUp(map.description, into: Self.firstRegister, to: rule)
            translate(NFT_NAT_SNAT, family, to: rule)
        case .setField(let family, let field, let map): write(field, of: family, from: map, to: rule)
        case .setMark(let mark):
            let value = NftExpression("immediate")
            value.set(NFTNL_EXPR_IMM_DREG, Self.firstRegister)
            value.set(NFTNL_EXPR_IMM_DATA, octets(mark))
            rule.append(value)
            setMark(to: rule)
        case .notrack: rule.append(NftExpression("notrack"))
        case .goTo(let chain): decide(UInt32(bitPattern: Int32(NFT_GOTO.rawValue)), chain: chain, to: rule)
        case .accept: decide(UInt32(NF_ACCEPT), to: rule)
        case .drop: decide(UInt32(NF_DROP), to: rule)
        case .queue(let first, let count): queue(first: first, count: count, to: rule)
        case .rejectWithTCPReset:
            let expression = NftExpression("reject")
            expression.set(NFTNL_EXPR_REJECT_TYPE, UInt32(NFT_REJECT_TCP_RST.rawValue))
            expression.set(NFTNL_EXPR_REJECT_CODE, UInt8(0))
            rule.append(expression)
        }
    }

    /// Fields as they are in the packet, each from a 32-bit register on.
    private mutating func load(_ key: PacketKey, to rule: borrowing NftRule) {
        require(key.family, to: rule)
        if key.needsTCP { require(protocol: UInt8(IPPROTO_TCP), to: rule) }
        var register = Self.firstRegister
        for field in key.fields {
            let place = HeaderPlace(field, key.family)
            load(base: place.base, offset: place.offset, length: place.length, into: register, to: rule)
            register += (place.length + 3) / 4
        }
    }

    /// A rule's own operation on a map, with the packet's mark as the value, of which `mask` is kept.
    private mutating func keepMark(
        of key: PacketKey, in map: SetName, _ operation: nft_dynset_ops, _ mask: UInt32?, to rule: borrowing NftRule
    ) {
        load(key, to: rule)
        let register = Self.firstRegister + key.fields.reduce(0) { $0 + (HeaderPlace($1, key.family).length + 3) / 4 }
        load(meta: NFT_META_MARK, into: register, to: rule)
        if let mask { keep(octets(mask), in: register, to: rule) }
        let expression = NftExpression("dynset")
        expression.set(NFTNL_EXPR_DYNSET_SREG_KEY, Self.firstRegister)
        expression.set(NFTNL_EXPR_DYNSET_SREG_DATA, register)
        expression.set(NFTNL_EXPR_DYNSET_OP, UInt32(operation.rawValue))
        expression.set(NFTNL_EXPR_DYNSET_SET_NAME, map.description)
        rule.append(expression)
    }

    /// Gives the packet the mark that is in the first register.
    private func setMark(to rule: borrowing NftRule) {
        let expression = NftExpression("meta")
        expression.set(NFTNL_EXPR_META_KEY, UInt32(NFT_META_MARK.rawValue))
        expression.set(NFTNL_EXPR_META_SREG, Self.firstRegister)
        rule.append(expression)
    }

    /// Writes what the map has for the packet's translation over the field, and corrects the checksums: the header's own,
    /// and TCP's for its pseudo header.
    private mutating func write(
        _ field: PacketField, of family: AddressFamily, from map: SetName, to rule: borrowing NftRule
    ) {
        let place = HeaderPlace(field, family)
        if place.isAddress { require(family, to: rule) } else { require(protocol: UInt8(IPPROTO_TCP), to: rule) }
        load(meta: NFT_META_MARK, to: rule)
        keep(octets(MarkLayout.translation), to: rule)
        lookUp(map.description, into: Self.firstRegister, to: rule)
        let expression = NftExpression("payload")
        expression.set(NFTNL_EXPR_PAYLOAD_SREG, Self.firstRegister)
        expression.set(NFTNL_EXPR_PAYLOAD_BASE, UInt32(place.base.rawValue))
        expression.set(NFTNL_EXPR_PAYLOAD_OFFSET, place.offset)
        expression.set(NFTNL_EXPR_PAYLOAD_LEN, place.length)
        expression.set(
            NFTNL_EXPR_PAYLOAD_CSUM_TYPE,
            UInt32(place.checksumOffset == nil ? NFT_PAYLOAD_CSUM_NONE.rawValue : NFT_PAYLOAD_CSUM_INET.rawValue))
        expression.set(NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, place.checksumOffset ?? 0)
        expression.set(
            NFTNL_EXPR_PAYLOAD_FLAGS, place.isAddress ? UInt32(NFT_PAYLOAD_L4CSUM_PSEUDOHDR.rawValue) : 0)
        rule.append(expression)
    }

    /// The four-tuple of the connection's original direction, as conntrack has it. A connection of the other family ends the
    /// rule.
    private func loadOriginal(_ family: AddressFamily, to rule: borrowing NftRule) {
        let (source, destination) =
            family == .ipv4 ? (NFT_CT_SRC_IP, NFT_CT_DST_IP) : (NFT_CT_SRC_IP6, NFT_CT_DST_IP6)
        let addressRegisters: UInt32 = family == .ipv4 ? 1 : 4
        var register = Self.firstRegister
        for (key, registers) in [
            (source, addressRegisters), (NFT_CT_PROTO_SRC, 1), (destination, addressRegisters), (NFT_CT_PROTO_DST, 1),
        ] {
            let expression = NftExpression("ct")
            expression.set(NFTNL_EXPR_CT_KEY, UInt32(key.rawValue))
            expression.set(NFTNL_EXPR_CT_DREG, register)
            expression.set(NFTNL_EXPR_CT_DIR, UInt8(IP_CT_DIR_ORIGINAL.rawValue))
            rule.append(expression)
            register += registers
        }
    }

    private mutating func require(_ family: AddressFamily, to rule: borrowing NftRule) {
        if hasFamily { return }
        hasFamily = true
        load(meta: NFT_META_NFPROTO, to: rule)
        compare([UInt8(family == .ipv4 ? NFPROTO_IPV4 : NFPROTO_IPV6)], to: rule)
    }

    private mutating func require(protocol number: UInt8, to rule: borrowing NftRule) {
        if hasProtocol { return }
        hasProtocol = true
        load(meta: NFT_META_L4PROTO, to: rule)
        compare([number], to: rule)
    }

    private func load(
        meta key: nft_meta_keys, into register: UInt32 = firstRegister, to rule: borrowing NftRule
    ) {
        let expression = NftExpression("meta")
        expression.set(NFTNL_EXPR_META_KEY, UInt32(key.rawValue))
        expression.set(NFTNL_EXPR_META_DREG, register)
        rule.append(expression)
    }

    private func load(
        base: nft_payload_bases, offset: UInt32, length: UInt32, into register: UInt32, to rule: borrowing NftRule
    ) {
        let expression = NftExpression("payload")
        expression.set(NFTNL_EXPR_PAYLOAD_DREG, register)
        expression.set(NFTNL_EXPR_PAYLOAD_BASE, UInt32(base.rawValue))
        expression.set(NFTNL_EXPR_PAYLOAD_OFFSET, offset)
        expression.set(NFTNL_EXPR_PAYLOAD_LEN, length)
        rule.append(expression)
    }

    private func compare(
        _ octets: [UInt8], _ operation: nft_cmp_ops = NFT_CMP_EQ, to rule: borrowing NftRule
    ) {
        let expression = NftExpression("cmp")
        expression.set(NFTNL_EXPR_CMP_SREG, Self.firstRegister)
        expression.set(NFTNL_EXPR_CMP_OP, UInt32(operation.rawValue))
        expression.set(NFTNL_EXPR_CMP_DATA, octets)
        rule.append(expression)
    }

    /// Keeps these bits of what is in a register.
    private func keep(_ mask: [UInt8], in register: UInt32 = firstRegister, to rule: borrowing NftRule) {
        let expression = NftExpression("bitwise")
        expression.set(NFTNL_EXPR_BITWISE_SREG, register)
        expression.set(NFTNL_EXPR_BITWISE_DREG, register)
        expression.set(NFTNL_EXPR_BITWISE_LEN, UInt32(mask.count))
        expression.set(NFTNL_EXPR_BITWISE_MASK, mask)
        expression.set(NFTNL_EXPR_BITWISE_XOR, [UInt8](repeating: 0, count: mask.count))
        rule.append(expression)
    }

    /// Ends the rule when the key is not there; else puts the key's value into `destination`, if there is one.
    private func lookUp(
        _ set: String, id: UInt32? = nil, into destination: UInt32? = nil, to rule: borrowing NftRule
    ) {
        let expression = NftExpression("lookup")
        expression.set(NFTNL_EXPR_LOOKUP_SREG, Self.firstRegister)
        expression.set(NFTNL_EXPR_LOOKUP_SET, set)
        if let id { expression.set(NFTNL_EXPR_LOOKUP_SET_ID, id) }
        if let destination { expression.set(NFTNL_EXPR_LOOKUP_DREG, destination) }
        rule.append(expression)
    }

    /// The map's value is address, then port, from the first register on.
    private func translate(_ kind: nft_nat_types, _ family: AddressFamily, to rule: borrowing NftRule) {
        let portRegister = Self.firstRegister + (family == .ipv4 ? 1 : 4)
        let expression = NftExpression("nat")
        expression.set(NFTNL_EXPR_NAT_TYPE, UInt32(kind.rawValue))
        expression.set(NFTNL_EXPR_NAT_FAMILY, UInt32(family == .ipv4 ? NFPROTO_IPV4 : NFPROTO_IPV6))
        expression.set(NFTNL_EXPR_NAT_REG_ADDR_MIN, Self.firstRegister)
        expression.set(NFTNL_EXPR_NAT_REG_PROTO_MIN, portRegister)
        rule.append(expression)
    }

    private func decide(_ verdict: UInt32, chain: ChainName? = nil, to rule: borrowing NftRule) {
        let expression = NftExpression("immediate")
        expression.set(NFTNL_EXPR_IMM_DREG, UInt32(NFT_REG_VERDICT.rawValue))
        expression.set(NFTNL_EXPR_IMM_VERDICT, verdict)
        if let chain { expression.set(NFTNL_EXPR_IMM_CHAIN, chain.rawValue) }
        rule.append(expression)
    }

    /// Neither form bypasses: without a listener the packet is dropped, not leaked. Neither spreads by CPU: that lets a
    /// connection's packets overtake each other.
    private func queue(first: UInt16, count: UInt16, to rule: borrowing NftRule) {
        switch queueStatement {
        case .native:
            let expression = NftExpression("queue")
            expression.set(NFTNL_EXPR_QUEUE_NUM, first)
            expression.set(NFTNL_EXPR_QUEUE_TOTAL, count)
            expression.set(NFTNL_EXPR_QUEUE_FLAGS, UInt16(0))
            rule.append(expression)
        case .xtTarget:
            let expression = NftExpression("target")
            expression.set(NFTNL_EXPR_TG_NAME, "NFQUEUE")
            expression.set(NFTNL_EXPR_TG_REV, UInt32(3))
            // struct xt_NFQ_info_v3 (first queue, number of queues, flags: three 16-bit numbers in host order), padded
            // to the eight octets that XT_ALIGN makes of it.
            expression.setTargetInfo(octets(first) + octets(count) + [0, 0, 0, 0])
            rule.append(expression)
        }
    }

    /// A number in the machine's byte order, as the kernel takes marks and xt data.
    private func octets(_ number: some FixedWidthInteger) -> [UInt8] {
        unsafe withUnsafeBytes(of: number) { unsafe Array($0) }
    }
}

/// Where a field is in the packet (RFC 791 section 3.1, RFC 8200 section 3, RFC 9293 section 3.1).
private struct HeaderPlace {
    let base: nft_payload_bases
    /// Octets from the header's beginning.
    let offset: UInt32
    let length: UInt32
    let isAddress: Bool
    /// Where the header has its own checksum; nil when it has none.
    let checksumOffset: UInt32?

    init(_ field: PacketField, _ family: AddressFamily) {
        switch field {
        case .saddr, .daddr:
            base = NFT_PAYLOAD_NETWORK_HEADER
            length = family == .ipv4 ? 4 : 16
            offset = (family == .ipv4 ? 12 : 8) + (field == .saddr ? 0 : length)
            isAddress = true
            checksumOffset = family == .ipv4 ? 10 : nil
        case .sport, .dport:
            base = NFT_PAYLOAD_TRANSPORT_HEADER
            length = 2
            offset = field == .sport ? 0 : 2
            isAddress = false
            checksumOffset = 16
        }
    }
}
