// SPDX-License-Identifier: GPL-3.0-or-later

internal import Migration
internal import Wire

/// The sessions in one dense array, each called by its place there. Nearly all rest: bound, of IPv4, nothing in transit.
/// Such a session takes 48 octets, from which the value is made when somebody asks for it; every other one is kept as
/// the value that it is.
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
    /// The sessions that are kept as values, by `Record.client`, and places there that are free.
    private var values: [Session?] = []
    private var freeValues: [UInt32] = []
    private var freeRecords: [UInt32] = []

    var count: Int { records.count - freeRecords.count }
    /// All places, also those that are free.
    var places: Range<Int> { records.indices }

    func isTaken(_ place: Int) -> Bool { !records[place].form.isEmpty }

    /// The session at a place that is taken.
    subscript(place: Int) -> Session {
        let record = records[place]
        if record.form.contains(.resting) { return record.session }
        guard let value = values[Int(record.client)] else { preconditionFailure("no session in place \(place)") }
        return value
    }

    func key(_ place: Int) -> SessionKey {
        let record = records[place]
        return record.form.contains(.resting) ? record.key : self[place].key
    }

    func number(_ place: Int) -> UInt64 {
        let record = records[place]
        return record.form.contains(.resting) ? record.id : self[place].id
    }

    /// See `Session.hostSide`.
    func hostSide(_ place: Int) -> FourTuple? {
        let record = records[place]
        return record.form.contains(.resting) ? record.hostSide : self[place].hostSide
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
            values[Int(records[place].client)] = session
            return
        }
        forgetValue(of: place)
        write(session, to: place)
    }

    mutating func remove(_ place: Int) {
        forgetValue(of: place)
        records[place].form = []
        freeRecords.append(UInt32(place))
    }

    /// Notes that the kernel has learnt a reply; false when that was known.
    mutating func learn(_ reply: FourTuple, at place: Int) -> Bool {
        guard records[place].form.contains(.resting) else {
            // In place: a service may have learnt very many.
            return values[Int(records[place].client)]?.replies.insert(reply).inserted ?? false
        }
        var session = self[place]
        guard session.replies.insert(reply).inserted else { return false }
        replace(place, by: session)
        return true
    }

    /// Notes that a reply is that of no connection any more. A session that rests keeps the one that it has.
    mutating func forget(_ reply: FourTuple, at place: Int) {
        guard !records[place].form.contains(.resting) else { return }
        let value = Int(records[place].client)
        // In place, as above.
        guard values[value]?.replies.remove(reply) != nil, values[value]?.replies.isEmpty ?? false else { return }
        replace(place, by: self[place])
    }

    private mutating func write(_ session: Session, to place: Int) {
        if let record = Record(resting: session) {
            records[place].assign(record)
            return
        }
        var record = Record()
        record.form = .kept
        if let free = freeValues.popLast() {
            record.client = free
            values[Int(free)] = session
        } else {
            record.client = UInt32(values.count)
            if values.capacity == values.count { values.reserveCapacity(values.count + max(16, values.count / 8)) }
            values.append(session)
        }
        records[place].assign(record)
    }

    private mutating func forgetValue(of place: Int) {
        guard records[place].form.contains(.kept) else { return }
        values[Int(records[place].client)] = nil
        freeValues.append(records[place].client)
        guard freeValues.count == values.count else { return }
        values = []
        freeValues = []
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

    /// nil when the session is more than a record holds.
    init?(resting session: Session) {
        guard session.transits.isEmpty, case .v4(let home) = session.key.home.address else { return nil }
        form = .resting
        id = session.id
        self.home = home.rawValue
        homePort = session.key.home.port
        if let address = session.key.client {
            guard case .v4(let address) = address else { return nil }
            client = address.rawValue
            form.insert(.client)
        }
        if let port = session.key.clientPort {
            clientPort = port
            form.insert(.clientPort)
        }
        if let binding = session.binding {
            guard case .v4(let address) = binding.host.address else { return nil }
            (host, hostPort) = (address.rawValue, binding.host.port)
            form.insert(.binding)
            if binding.datapath == .queue { form.insert(.isCarried) }
            if let port = binding.sourcePort {
                sourcePort = port
                form.insert(.sourcePort)
            }
        }
        if session.yields { form.insert(.yields) }
        if session.replies.isEmpty { return }
        guard session.replies.count == 1, let tuple = session.hostSide, session.replies.contains(tuple.reversed)
        else { return nil }
        form.insert(.isAnswered)
    }

    /// Takes everything but the neighbours from another one.
    mutating func assign(_ other: Record) {
        let (ofClient, ofEndpoint) = (ofClient, ofEndpoint)
        self = other
        (self.ofClient, self.ofEndpoint) = (ofClient, ofEndpoint)
    }

    // Of a record that holds it all.

    var key: SessionKey {
        SessionKey(
            client: form.contains(.client) ? Self.address(client) : nil,
            clientPort: form.contains(.clientPort) ? clientPort : nil,
            home: Endpoint(address: Self.address(home), port: homePort))
    }

    private var binding: Binding? {
        guard form.contains(.binding) else { return nil }
        return Binding(
            host: Endpoint(address: Self.address(host), port: hostPort),
            datapath: form.contains(.isCarried) ? .queue : .kernel,
            sourcePort: form.contains(.sourcePort) ? sourcePort : nil)
    }

    /// As `Session.hostSide` has it.
    var hostSide: FourTuple? {
        guard form.isSuperset(of: [.client, .clientPort, .binding]), !form.isDisjoint(with: [.isCarried, .sourcePort])
        else { return nil }
        return FourTuple(
            source: Endpoint(
                address: Self.address(client), port: form.contains(.sourcePort) ? sourcePort : clientPort),
            destination: Endpoint(address: Self.address(host), port: hostPort))
    }

    var session: Session {
        var session = Session(key: key, id: id, binding: binding)
        session.yields = form.contains(.yields)
        if form.contains(.isAnswered), let tuple = hostSide { session.replies = [tuple.reversed] }
        return session
    }

    private static func address(_ number: UInt32) -> IPAddress { .v4(IPv4Address(rawValue: number)) }
}
