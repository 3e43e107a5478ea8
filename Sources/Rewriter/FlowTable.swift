// SPDX-License-Identifier: GPL-3.0-or-later

internal import Wire

/// The rules of all flows, owned by one thread. Flows of IPv4, and those of which an address is of IPv6, stand in slots of
/// their own size. Memory is taken by `init` and `set` only.
public struct FlowTable: ~Copyable {
    /// Flows of IPv4: 24 octets each.
    @usableFromInline internal var narrow: FlowSlots<NarrowSlot>
    /// All others, and rules that a narrow slot has no room for: 32 octets each.
    @usableFromInline internal var wide: FlowSlots<WideSlot>
    /// What the wide slots refer to.
    @usableFromInline internal var endpoints = EndpointRegister()
    /// The number of flows in the table.
    public private(set) var count = 0
    @usableFromInline internal let seed: UInt64
    /// How many flows are for every client: without any, a packet costs no look-up for them.
    @usableFromInline internal private(set) var anyClientCount = 0

    /// Packets from which the kernel could have learnt a reply, since it last did; full at the start, so that what a new
    /// daemon sees first is learnt.
    @usableFromInline internal var sinceReminder = 60
    /// How many packets the kernel may learn from whatever it learnt before.
    @usableFromInline internal var reminders = 0

    /// Who writes what a rule says.
    @usableFromInline internal let treatment: Treatment
    @usableFromInline internal var marks = TranslationMarks()

    /// A table that takes `capacity` flows of IPv4, and `wideCapacity` others, before it grows. `seed` must not be known to
    /// those who choose addresses and ports: it keeps them from choosing flows that all fall on one slot. With treatment
    /// `mark`, each translation must have its mark before it is in a rule: what has none is dropped.
    public init(capacity: Int = 1024, wideCapacity: Int = 0, seed: UInt64, treatment: Treatment = .rewrite) {
        self.treatment = treatment
        narrow = FlowSlots(capacity: capacity)
        wide = FlowSlots(capacity: wideCapacity)
        self.seed = seed
    }

    /// Adds a flow or replaces its rule. Moves all entries of its family to half as much memory again when they have too
    /// little, so call it between batches only.
    public mutating func set(_ key: FlowKey, _ rule: FlowRule) {
        let isNew: Bool
        if let packed = NarrowKey(key) {
            let slot = NarrowSlot(key: packed, rule: rule)
            isNew = narrow.set(slot ?? NarrowSlot(elsewhere: packed), seed)
            if slot == nil {
                _ = setWide(key, rule)
            } else if !isNew {
                _ = removeWide(key)
            }
        } else {
            isNew = setWide(key, rule)
        }
        guard isNew else { return }
        count += 1
        if key == key.anyClient { anyClientCount += 1 }
    }

    /// Says by which mark the kernel knows a translation; 0: by none any more.
    public mutating func setMark(_ mark: UInt32, of translation: Translation) {
        marks.set(translation, mark: mark, seed: seed)
    }

    /// Removes a flow. False when it was not there.
    @discardableResult
    public mutating func remove(_ key: FlowKey) -> Bool {
        let wasWide = removeWide(key)
        guard NarrowKey(key).map({ narrow.remove($0, seed) }) ?? wasWide else { return false }
        count -= 1
        if key == key.anyClient { anyClientCount -= 1 }
        return true
    }

    /// Whether the flow is new among the wide ones.
    private mutating func setWide(_ key: FlowKey, _ rule: FlowRule) -> Bool {
        let old = widePlace(of: key).map { wide[~$0] }
        let place = old?.key.place ?? endpoints.take(key.registered, seed)
        let written = (rule.translation?.endpoint).map { endpoints.take($0, seed) }
        if let old, old.writes { endpoints.release(old.written, seed) }
        return wide.set(WideSlot(key: WideKey(key, place), rule: rule, written: written ?? 0), seed)
    }

    /// False when it was not among the wide ones.
    private mutating func removeWide(_ key: FlowKey) -> Bool {
        guard let slot = widePlace(of: key).map({ wide[~$0] }) else { return false }
        _ = wide.remove(slot.key, seed)
        endpoints.release(slot.key.place, seed)
        if slot.writes { endpoints.release(slot.written, seed) }
        return true
    }

    /// The rule that this very key was set to; a key with any port is found only by itself.
    public func lookup(_ key: FlowKey) -> FlowRule? { place(of: key).map { rule(at: $0) } }

    /// The rule that a packet with this key meets: its own, that of any port of the client, or that of every client.
    package func coveringRule(_ key: FlowKey) -> FlowRule? { covering(key).map { rule(at: $0) } }

    /// The place of the rule that covers a packet with this key: its own, or else that of any port of the client, or else
    /// that of every client.
    @inlinable @inline(__always)
    internal func covering(_ key: FlowKey) -> Int? {
        guard NarrowKey(key) != nil else { return wideCovering(key) }
        if let own = place(of: key) { return own }
        if let shared = place(of: key.anyPort) { return shared }
        guard anyClientCount > 0 else { return nil }
        return place(of: key.anyClient)
    }

    /// The same of a flow that is not of IPv4. What is for an endpoint that no flow has costs one look-up.
    @usableFromInline @inline(never)
    internal func wideCovering(_ key: FlowKey) -> Int? {
        guard let place = endpoints.place(of: key.registered, seed) else { return nil }
        let packed = WideKey(key, place)
        if let own = wide.find(packed, seed) { return ~own }
        if let shared = wide.find(packed.anyPort, seed) { return ~shared }
        guard anyClientCount > 0 else { return nil }
        return wide.find(packed.anyClient, seed).map { ~$0 }
    }

    /// Where the rule of this very key is: the number of its narrow slot, or the complement of that of its wide one.
    @inlinable @inline(__always)
    internal func place(of key: FlowKey) -> Int? {
        guard let packed = NarrowKey(key) else { return widePlace(of: key) }
        guard let slot = narrow.find(packed, seed) else { return nil }
        return narrow[slot].isElsewhere ? widePlace(of: key) : slot
    }

    @usableFromInline @inline(never)
    internal func widePlace(of key: FlowKey) -> Int? {
        guard let place = endpoints.place(of: key.registered, seed) else { return nil }
        return wide.find(WideKey(key, place), seed).map { ~$0 }
    }

    @inlinable @inline(__always)
    internal func rule(at place: Int) -> FlowRule { place < 0 ? wideRule(at: place) : narrow[place].rule }

    @usableFromInline @inline(never)
    internal func wideRule(at place: Int) -> FlowRule { wide[~place].rule(endpoints) }

    /// The connection that a rule awaits has begun: it passes from now on.
    @inlinable @inline(__always)
    internal mutating func reconnect(at place: Int) {
        if place < 0 { wide[~place].reconnect() } else { narrow[place].reconnect() }
    }

    /// How many slots there are, taken or vacant.
    public var slotCount: Int { narrow.count + wide.count }

    /// How many endpoints the flows that are not of IPv4 refer to.
    package var endpointCount: Int { endpoints.count }

    /// How many slots beyond the first a look-up of `key` reads: what it costs in time.
    public func probes(_ key: FlowKey) -> Int {
        if let packed = NarrowKey(key) { return narrow.probes(packed, seed) }
        return endpoints.place(of: key.registered, seed).map { wide.probes(WideKey(key, $0), seed) } ?? 0
    }
}
