// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Glibc

// One owner for each kind of libnftnl object: the library's own types arrive in Swift as one and the same
// OpaquePointer, so none leaves this file. The setters copy what they are given.

/// The library gives nil only when there is no memory.
private func allocated(_ object: OpaquePointer?) -> OpaquePointer {
    guard let object = unsafe object else { fatalError("out of memory") }
    return unsafe object
}

/// A table of family inet.
@safe
struct NftTable: ~Copyable {
    private let handle: OpaquePointer

    init(name: String? = nil) {
        unsafe handle = allocated(nftnl_table_alloc())
        if let name { _ = unsafe nftnl_table_set_str(handle, UInt16(NFTNL_TABLE_NAME.rawValue), name) }
    }

    deinit { unsafe nftnl_table_free(handle) }

    /// The comment that `nft list table` shows: user data of type NFTNL_UDATA_TABLE_COMMENT, zero-terminated. Up to 127
    /// octets.
    func setComment(_ comment: String) {
        let text = comment.utf8.prefix(127) + [0]
        let data = [UInt8(NFTNL_UDATA_TABLE_COMMENT.rawValue), UInt8(text.count)] + text
        _ = unsafe data.withUnsafeBytes { octets in
            unsafe nftnl_table_set_data(
                handle, UInt16(NFTNL_TABLE_USERDATA.rawValue), octets.baseAddress, UInt32(octets.count))
        }
    }

    var name: String? {
        unsafe nftnl_table_get_str(handle, UInt16(NFTNL_TABLE_NAME.rawValue)).map { unsafe String(cString: $0) }
    }

    /// The kernel's own number of the table.
    var number: UInt64 { unsafe nftnl_table_get_u64(handle, UInt16(NFTNL_TABLE_HANDLE.rawValue)) }

    var comment: String? {
        var length: UInt32 = 0
        guard
            let data = unsafe nftnl_table_get_data(handle, UInt16(NFTNL_TABLE_USERDATA.rawValue), &length)
        else { return nil }
        var rest = unsafe Array(UnsafeRawBufferPointer(start: data, count: Int(length)))[...]
        // Type, length, value, one after another.
        while let type = rest.popFirst(), let count = rest.popFirst() {
            if type == UInt8(NFTNL_UDATA_TABLE_COMMENT.rawValue) {
                return String(decoding: rest.prefix(Int(count)).prefix { $0 != 0 }, as: UTF8.self)
            }
            rest = rest.dropFirst(Int(count))
        }
        return nil
    }

    func write(to message: UnsafeMutablePointer<nlmsghdr>) {
        unsafe nftnl_table_nlmsg_build_payload(message, handle)
    }

    /// Whether `message` is a table and has been read.
    func read(_ message: UnsafePointer<nlmsghdr>) -> Bool { unsafe nftnl_table_nlmsg_parse(message, handle) >= 0 }
}

/// A chain; a base chain when it has a hook.
@safe
struct NftChain: ~Copyable {
    private let handle: OpaquePointer

    init(table: String, name: String) {
        unsafe handle = allocated(nftnl_chain_alloc())
        _ = unsafe nftnl_chain_set_str(handle, UInt16(NFTNL_CHAIN_TABLE.rawValue), table)
        _ = unsafe nftnl_chain_set_str(handle, UInt16(NFTNL_CHAIN_NAME.rawValue), name)
    }

    deinit { unsafe nftnl_chain_free(handle) }

    /// Makes it a base chain with policy accept.
    func setHook(type: String, number: UInt32, priority: Int32) {
        _ = unsafe nftnl_chain_set_str(handle, UInt16(NFTNL_CHAIN_TYPE.rawValue), type)
        unsafe nftnl_chain_set_u32(handle, UInt16(NFTNL_CHAIN_HOOKNUM.rawValue), number)
        unsafe nftnl_chain_set_s32(handle, UInt16(NFTNL_CHAIN_PRIO.rawValue), priority)
        unsafe nftnl_chain_set_u32(handle, UInt16(NFTNL_CHAIN_POLICY.rawValue), UInt32(NF_ACCEPT))
    }

    func write(to message: UnsafeMutablePointer<nlmsghdr>) {
        unsafe nftnl_chain_nlmsg_build_payload(message, handle)
    }
}

/// One statement or part of one. A rule takes it over.
@safe
struct NftExpression: ~Copyable {
    private let handle: OpaquePointer

    init(_ name: String) { unsafe handle = allocated(nftnl_expr_alloc(name)) }

    deinit { unsafe nftnl_expr_free(handle) }

    func set(_ attribute: Int, _ value: UInt32) { unsafe nftnl_expr_set_u32(handle, UInt16(attribute), value) }
    func set(_ attribute: Int, _ value: UInt16) { unsafe nftnl_expr_set_u16(handle, UInt16(attribute), value) }
    func set(_ attribute: Int, _ value: UInt8) { unsafe nftnl_expr_set_u8(handle, UInt16(attribute), value) }
    func set(_ attribute: Int, _ value: String) { _ = unsafe nftnl_expr_set_str(handle, UInt16(attribute), value) }

    func set(_ attribute: Int, _ octets: [UInt8]) {
        _ = unsafe octets.withUnsafeBytes { octets in
            unsafe nftnl_expr_set(handle, UInt16(attribute), octets.baseAddress, UInt32(octets.count))
        }
    }

    /// The private data of an xt target. Unlike every other setter, this one makes the library the owner of the memory
    /// (it frees it with the expression), so it gets a copy from malloc.
    func setTargetInfo(_ octets: [UInt8]) {
        guard let copy = unsafe malloc(octets.count) else { fatalError("out of memory") }
        unsafe octets.withUnsafeBytes { octets in
            guard let start = octets.baseAddress else { return }
            unsafe copy.copyMemory(from: start, byteCount: octets.count)
        }
        _ = unsafe nftnl_expr_set(handle, UInt16(NFTNL_EXPR_TG_INFO), copy, UInt32(octets.count))
    }

    fileprivate consuming func release() -> OpaquePointer {
        let handle = unsafe handle
        discard self
        return unsafe handle
    }
}

/// A rule: a row of expressions in a chain.
@safe
struct NftRule: ~Copyable {
    private let handle: OpaquePointer

    init() { unsafe handle = allocated(nftnl_rule_alloc()) }

    /// One of a chain, or, in a request, of any chain of the table.
    init(table: String, chain: String? = nil) {
        unsafe handle = allocated(nftnl_rule_alloc())
        _ = unsafe nftnl_rule_set_str(handle, UInt16(NFTNL_RULE_TABLE.rawValue), table)
        if let chain { _ = unsafe nftnl_rule_set_str(handle, UInt16(NFTNL_RULE_CHAIN.rawValue), chain) }
        unsafe nftnl_rule_set_u32(handle, UInt16(NFTNL_RULE_FAMILY.rawValue), UInt32(NFPROTO_INET))
    }

    deinit { unsafe nftnl_rule_free(handle) }

    func append(_ expression: consuming NftExpression) { unsafe nftnl_rule_add_expr(handle, expression.release()) }

    func write(to message: UnsafeMutablePointer<nlmsghdr>) {
        unsafe nftnl_rule_nlmsg_build_payload(message, handle)
    }

    /// Whether `message` is a rule and has been read.
    func read(_ message: UnsafePointer<nlmsghdr>) -> Bool { unsafe nftnl_rule_nlmsg_parse(message, handle) >= 0 }

    var chain: String? {
        unsafe nftnl_rule_get_str(handle, UInt16(NFTNL_RULE_CHAIN.rawValue)).map { unsafe String(cString: $0) }
    }

    /// The names of its expressions.
    var expressionNames: [String] { strings { expression, _ in expression } }

    /// The names of the sets and maps that it looks keys up in, without those that have none of their own.
    var lookedUpSets: [String] {
        strings { name, attribute in name == "lookup" ? attribute(NFTNL_EXPR_LOOKUP_SET) : nil }
            .filter { !$0.hasPrefix("__") }
    }

    /// What `body` makes of the name of each expression, and of attributes that are strings.
    private func strings(_ body: (String, (Int) -> String?) -> String?) -> [String] {
        guard let iterator = unsafe nftnl_expr_iter_create(handle) else { return [] }
        defer { unsafe nftnl_expr_iter_destroy(iterator) }
        var strings: [String] = []
        while let expression = unsafe nftnl_expr_iter_next(iterator) {
            func attribute(_ number: Int) -> String? {
                unsafe nftnl_expr_get_str(expression, UInt16(number)).map { unsafe String(cString: $0) }
            }
            if let name = attribute(Int(NFTNL_EXPR_NAME)), let string = body(name, attribute) { strings.append(string) }
        }
        return strings
    }
}

/// An element of a set or map. A set takes it over.
@safe
struct NftElement: ~Copyable {
    private let handle: OpaquePointer

    init(key: [UInt8]) {
        unsafe handle = allocated(nftnl_set_elem_alloc())
        set(NFTNL_SET_ELEM_KEY, key)
    }

    deinit { unsafe nftnl_set_elem_free(handle) }

    func setData(_ octets: [UInt8]) { set(NFTNL_SET_ELEM_DATA, octets) }

    func setTimeout(milliseconds: UInt64) {
        unsafe nftnl_set_elem_set_u64(handle, UInt16(NFTNL_SET_ELEM_TIMEOUT), milliseconds)
    }

    private func set(_ attribute: Int, _ octets: [UInt8]) {
        _ = unsafe octets.withUnsafeBytes { octets in
            unsafe nftnl_set_elem_set(handle, UInt16(attribute), octets.baseAddress, UInt32(octets.count))
        }
    }

    fileprivate consuming func release() -> OpaquePointer {
        let handle = unsafe handle
        discard self
        return unsafe handle
    }
}

/// A set or map: its definition, or elements for it.
@safe
struct NftSet: ~Copyable {
    private let handle: OpaquePointer

    init() { unsafe handle = allocated(nftnl_set_alloc()) }

    init(table: String, name: String) {
        unsafe handle = allocated(nftnl_set_alloc())
        _ = unsafe nftnl_set_set_str(handle, UInt16(NFTNL_SET_TABLE.rawValue), table)
        _ = unsafe nftnl_set_set_str(handle, UInt16(NFTNL_SET_NAME.rawValue), name)
    }

    deinit { unsafe nftnl_set_free(handle) }

    func set(_ attribute: nftnl_set_attr, _ value: UInt32) {
        unsafe nftnl_set_set_u32(handle, UInt16(attribute.rawValue), value)
    }

    func setTimeout(milliseconds: UInt64) {
        unsafe nftnl_set_set_u64(handle, UInt16(NFTNL_SET_TIMEOUT.rawValue), milliseconds)
    }

    /// Tells nft that keys are in the machine's byte order: user data of type NFTNL_UDATA_SET_KEYBYTEORDER, with the value
    /// that nft has for it (BYTEORDER_HOST_ENDIAN). The kernel only keeps it.
    func setKeysInHostOrder() {
        let order = unsafe withUnsafeBytes(of: UInt32(1)) { unsafe Array($0) }
        let data = [UInt8(NFTNL_UDATA_SET_KEYBYTEORDER.rawValue), UInt8(order.count)] + order
        _ = unsafe data.withUnsafeBytes { octets in
            unsafe nftnl_set_set_data(
                handle, UInt16(NFTNL_SET_USERDATA.rawValue), octets.baseAddress, UInt32(octets.count))
        }
    }

    func append(_ element: consuming NftElement) { unsafe nftnl_set_elem_add(handle, element.release()) }

    func write(to message: UnsafeMutablePointer<nlmsghdr>) {
        unsafe nftnl_set_nlmsg_build_payload(message, handle)
    }

    func writeElements(to message: UnsafeMutablePointer<nlmsghdr>) {
        unsafe nftnl_set_elems_nlmsg_build_payload(message, handle)
    }

    /// Whether `message` holds elements and has been read; they come after those that were read before.
    func readElements(_ message: UnsafePointer<nlmsghdr>) -> Bool {
        unsafe nftnl_set_elems_nlmsg_parse(message, handle) >= 0
    }

    /// Calls `body` with each element's key and data (empty for a set).
    /// `remaining`: milliseconds until the element expires by itself; 0 for one that does not.
    func forEachElement(_ body: (_ key: [UInt8], _ data: [UInt8], _ remaining: UInt64) -> Void) {
        guard let iterator = unsafe nftnl_set_elems_iter_create(handle) else { return }
        defer { unsafe nftnl_set_elems_iter_destroy(iterator) }
        while let element = unsafe nftnl_set_elems_iter_next(iterator) {
            func octets(_ attribute: Int) -> [UInt8] {
                var length: UInt32 = 0
                guard unsafe nftnl_set_elem_is_set(element, UInt16(attribute)),
                    let start = unsafe nftnl_set_elem_get(element, UInt16(attribute), &length)
                else { return [] }
                return unsafe Array(UnsafeRawBufferPointer(start: start, count: Int(length)))
            }
            // Of an element that stays the library has no such number, and reads it all the same.
            let expires = UInt16(NFTNL_SET_ELEM_EXPIRATION)
            let remaining =
                unsafe nftnl_set_elem_is_set(element, expires) ? nftnl_set_elem_get_u64(element, expires) : 0
            body(octets(NFTNL_SET_ELEM_KEY), octets(NFTNL_SET_ELEM_DATA), remaining)
        }
    }
}
