// SPDX-License-Identifier: GPL-3.0-or-later

internal import Migration
internal import Wire

/// The sessions in one dense array, each called by its place there. Nearly all rest: bound, nothing in transit. Such a
/// session takes 48 octets, and 48 more for addresses of IPv6, from which the value is made when somebody asks for it;
/// every other one is kept as the value that it is.
struct SessionRecords: Sendable {
    /// Two lists in which a record stands: that of its client's address, and that of its client's endpoint.
    enum List: Int {
        case ofClient
        case ofEndpoint
    }

    /// The neighbours in a list; a record without one points at itself.
    struct Neighbours {
        var previous: UInt32
        var next: UInt32
    }

    private var records: [Record] = []
    private var freeRecords: [UInt32] = []
    /// The sessions that are kept as values, by `Record.client`.
    private var values = SparePlaces<Session?>(vacant: nil)
    /// The addresses of IPv6 of those that rest, by `Record.client`.
    private var wideAddresses = SparePlaces(vacant: WideAddresses())

    var count: Int { records.count - freeRecords.count }
    /// All places, also those that are free.
    var places: Range<Int> { records.indices }

    func isTaken(_ place: Int) -> Bool { !records[place].form.isEmpty }

    /// The session at a place that is taken.
    subscript(place: Int) -> Session {
        let record = records[place]
        if record.form.contains(.resting) { return record.session(addresses(record)) }
        guard let value = values[record.client] else { preconditionFailure("no session in place \(place)") }
        return value
    }

    private func addresses(_ record: Record) -> SessionAddresses {
        record.form.contains(.isWide) ? SessionAddresses(wideAddresses[record.client]) : record.narrowAddresses
    }

    func key(_ place: Int) -> SessionKey {
        let record = records[place]
        return record.form.contains(.resting) ? record.key(addresses(record)) : self[place].key
    }

    func number(_ place: Int) -> UInt64 {
        let record = records[place]
        return record.form.contains(.resting) ? record.id : self[place].id
    }

    /// See `Session.hostSide`.
    func hostSide(_ place: Int) -> FourTuple? {
        let record = records[place]
        return record.form.contains(.resting) ? record.hostSide(addresses(record)) : self[place].hostSide
    }

    mutating func reserve(_ count: Int) { records.reserveCapacity(count) }

    mutating func insert(_ session: Session) -> Int {
        let place: Int
        if let free = freeRecords.popLast() {
            place = Int(free)
        } else {
            place = records.count
            // An eighth at a time: doubling would cost more than it saves.
            if records.capacity == place { records.reserveCapacity(place + max(64, place / 8)) }
            records.append(Record())
        }
        write(session, to: place)
        for list in [List.ofClient, .ofEndpoint] {
            self[place, list] = Neighbours(previous: UInt32(place), next: UInt32(place))
        }
        return place
    }

    /// Keeps `session` at a place that is taken.
    mutating func replace(_ place: Int, by session: Session) {
        if !records[place].form.contains(.resting), Record(resting: session) == nil {
            values[records[place].client] = session
            return
        }
        forgetRest(of: place)
        write(session, to: place)
    }

    mutating func remove(_ place: Int) {
        forgetRest(of: place)
        records[place].form = []
        freeRecords.append(UInt32(place))
    }

    /// Notes that the kernel has learnt a reply; false when that was known.
    mutating func learn(_ reply: FourTuple, at place: Int) -> Bool {
        guard records[place].form.contains(.resting) else {
            // In place: a service may have learnt very many.
            return values[records[place].client]?.replies.insert(reply).inserted ?? false
        }
        var session = self[place]
        guard session.replies.insert(reply).inserted else { return false }
        replace(place, by: session)
        return true
    }

    /// Notes that a reply is that of no connection any more. A session that rests keeps the one that it has.
    mutating func forget(_ reply: FourTuple, at place: Int) {
        guard !records[place].form.contains(.resting) else { return }
        let value = records[place].client
        // In place, as above.
        guard values[value]?.replies.remove(reply) != nil, values[value]?.replies.isEmpty ?? false else { return }
        replace(place, by: self[place])
    }

    private mutating func write(_ session: Session, to place: Int) {
        guard var record = Record(resting: session) else {
            var record = Record()
            record.form = .kept
            record.client = values.insert(session)
            records[place].assign(record)
            return
        }
        if record.form.contains(.isWide) {
            record.client = wideAddresses.insert(WideAddresses(SessionAddresses(session)))
        }
        records[place].assign(record)
    }

    /// Forgets what is kept of a session beside its record.
    private mutating func forgetRest(of place: Int) {
        let record = records[place]
        if record.form.contains(.kept) { values.remove(record.client) }
        if record.form.contains(.isWide) { wideAddresses.remove(record.client) }
    }

    // MARK: - Lists

    private(set) subscript(place: Int, list: List) -> Neighbours {
        get { list == .ofClient ? records[place].ofClient : records[place].ofEndpoint }
        set {
            switch list {
            case .ofClient: records[place].ofClient = newValue
            case .ofEndpoint: records[place].ofEndpoint = newValue
            }
        }
    }

    /// Puts a record before the one that was the first of the list.
    mutating func link(_ place: Int, before first: Int, in list: List) {
        self[place, list].next = UInt32(first)
        self[first, list].previous = UInt32(place)
    }

    /// Takes a record out of a list. The first of the list, when it was `place` and there is another one now.
    mutating func unlink(_ place: Int, from list: List) -> Int? {
        let neighbours = self[place, list]
        let (previous, next) = (Int(neighbours.previous), Int(neighbours.next))
        if next != place { self[next, list].previous = previous == place ? neighbours.next : neighbours.previous }
        if previous != place { self[previous, list].next = next == place ? neighbours.previous : neighbours.next }
        return previous == place && next != place ? next : nil
    }

    /// Calls `body` with the places of a list, from its first on.
    func forEach(from first: Int?, in list: List, _ body: (Int) -> Void) {
        guard var place = first else { return }
        while true {
            body(place)
            let next = Int(self[place, list].next)
            if next == place { return }
            place = next
        }
    }
}

/// A session that rests, or where its value is.
private struct Record {
    struct Form: OptionSet {
        var rawValue: UInt16

        /// The record says it all.
        static let resting = Form(rawValue: 1 << 0)
        /// The value is kept; `client` says where.
        static let kept = Form(rawValue: 1 << 1)
        /// What the session has, of what may be absent.
        static let client = Form(rawValue: 1 << 2)
        static let clientPort = Form(rawValue: 1 << 3)
        static let binding = Form(rawValue: 1 << 4)
        static let sourcePort = Form(rawValue: 1 << 5)
        /// Its binding's datapath is `queue`.
        static let isCarried = Form(rawValue: 1 << 6)
        static let yields = Form(rawValue: 1 << 7)
        /// The kernel has learnt the reply of the connection that it has from its present port.
        static let isAnswered = Form(rawValue: 1 << 8)
        /// Its addresses are of IPv6 and stand elsewhere; `client` says where.
        static let isWide = Form(rawValue: 1 << 9)
    }

    var id: UInt64 = 0
    var client: UInt32 = 0
    var home: UInt32 = 0
    var host: UInt32 = 0
    var clientPort: UInt16 = 0
    var homePort: UInt16 = 0
    var hostPort: UInt16 = 0
    var sourcePort: UInt16 = 0
    var form: Form = []
    var ofClient = SessionRecords.Neighbours(previous: 0, next: 0)
    var ofEndpoint = SessionRecords.Neighbours(previous: 0, next: 0)

    init() {}

    /// nil when the session is more than a record holds. Without the addresses if they are of IPv6.
    init?(resting session: Session) {
        let addresses = SessionAddresses(session)
        guard session.transits.isEmpty, let family = addresses.family else { return nil }
        form = .resting
        id = session.id
        homePort = session.key.home.port
        if session.key.client != nil { form.insert(.client) }
        if let port = session.key.clientPort {
            clientPort = port
            form.insert(.clientPort)
        }
        if let binding = session.binding {
            hostPort = binding.host.port
            form.insert(.binding)
            if binding.datapath == .queue { form.insert(.isCarried) }
            if let port = binding.sourcePort {
                sourcePort = port
                form.insert(.sourcePort)
            }
        }
        if session.yields { form.insert(.yields) }
        if !session.replies.isEmpty {
            guard session.replies.count == 1, let tuple = session.hostSide, session.replies.contains(tuple.reversed)
            else { return nil }
            form.insert(.isAnswered)
        }
        switch family {
        case .ipv6: form.insert(.isWide)
        case .ipv4:
            client = UInt32(truncatingIfNeeded: addresses.client.numbers.low)
            home = UInt32(truncatingIfNeeded: addresses.home.numbers.low)
            host = UInt32(truncatingIfNeeded: addresses.host.numbers.low)
        }
    }

    /// Takes everything but the neighbours from another one.
    mutating func assign(_ other: Record) {
        let (ofClient, ofEndpoint) = (ofClient, ofEndpoint)
        self = other
        (self.ofClient, self.ofEndpoint) = (ofClient, ofEndpoint)
    }

    // Of a record that rests.

    /// Its addresses, when they are of IPv4.
    var narrowAddresses: SessionAddresses {
        SessionAddresses(client: Self.address(client), home: Self.address(home), host: Self.address(host))
    }

    func key(_ addresses: SessionAddresses) -> SessionKey {
        SessionKey(
            client: form.contains(.client) ? addresses.client : nil,
            clientPort: form.contains(.clientPort) ? clientPort : nil,
            home: Endpoint(address: addresses.home, port: homePort))
    }

    private func binding(_ addresses: SessionAddresses) -> Binding? {
        guard form.contains(.binding) else { return nil }
        return Binding(
            host: Endpoint(address: addresses.host, port: hostPort),
            datapath: form.contains(.isCarried) ? .queue : .kernel,
            sourcePort: form.contains(.sourcePort) ? sourcePort : nil)
    }

    /// As `Session.hostSide` has it.
    func hostSide(_ addresses: SessionAddresses) -> FourTuple? {
        guard form.isSuperset(of: [.client, .clientPort, .binding]), !form.isDisjoint(with: [.isCarried, .sourcePort])
        else { return nil }
        return FourTuple(
            source: Endpoint(address: addresses.client, port: form.contains(.sourcePort) ? sourcePort : clientPort),
            destination: Endpoint(address: addresses.host, port: hostPort))
    }

    func session(_ addresses: SessionAddresses) -> Session {
        var session = Session(key: key(addresses), id: id, binding: binding(addresses))
        session.yields = form.contains(.yields)
        if form.contains(.isAnswered), let tuple = hostSide(addresses) { session.replies = [tuple.reversed] }
        return session
    }

    private static func address(_ number: UInt32) -> IPAddress { .v4(IPv4Address(rawValue: number)) }
}
