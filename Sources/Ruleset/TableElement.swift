// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// One element of one of our sets or maps. All addresses of an element are of one family.
public enum TableElement: Hashable, Sendable {
    /// Packets to this address are looked up in `divert`, `divertConnection`, `divertClient`, `divertService`, `guard`, `credit` and
    /// `icmpHome`; those elements work only beside this one.
    case involved(IPAddress)
    /// Segments with this four-tuple, as they arrive at the gateway, go to a queue, whatever else is known of it.
    case divert(FourTuple)
    /// Segments with this four-tuple, as they arrive at the gateway, go to a queue, unless the kernel carries them.
    case divertConnection(FourTuple)
    /// Segments with this four-tuple, as they arrive at the gateway, are dropped and answered with a RST by the kernel.
    case `guard`(FourTuple)
    /// SYNs of this client address to this home go to a queue: one of its sessions may have lost its connection.
    case credit(client: IPAddress, home: Endpoint)
    /// All segments of this client address to this home go to a queue.
    case divertClient(client: IPAddress, home: Endpoint)
    /// All segments to this home go to a queue.
    case divertService(home: Endpoint)
    /// A new connection with this four-tuple client → home is translated to `host` by the kernel.
    case connection(FourTuple, host: Endpoint)
    /// New connections of this client address to this home are translated to `host` by the kernel.
    case client(IPAddress, home: Endpoint, host: Endpoint)
    /// New connections of every client to this home are translated to `host` by the kernel.
    case service(home: Endpoint, host: Endpoint)
    /// The host sees this endpoint as the client of a new connection with this four-tuple client → home that the kernel
    /// translates.
    case source(FourTuple, as: Endpoint)
    /// The kernel's own RSTs with this four-tuple, towards the host that is guarded against, are not tracked.
    case guarded(FourTuple)
    /// Segments host → client with this four-tuple go to a queue after routing; works only beside `answering` of the host.
    case reply(FourTuple)
    /// Segments of this host are looked up in `reply`.
    case answering(IPAddress)
    /// ICMP errors that are addressed to this home go to a queue.
    case icmpHome(IPAddress)
    /// ICMP errors that are addressed to this client go to a queue.
    case icmpPeer(IPAddress)
    /// The address that the kernel writes for translation `number`.
    case endpointAddress(number: UInt32, IPAddress)
    /// The port that the kernel writes for translation `number` of this family.
    case endpointPort(number: UInt32, UInt16, AddressFamily)
    /// The client's port that the kernel writes for translation `number` of this family.
    case clientPort(number: UInt32, UInt16, AddressFamily)
}

/// An element that cannot be in the table, because its addresses are of both families.
public struct MixedFamilies: Error, Hashable, Sendable, CustomStringConvertible {
    public let element: TableElement

    public init(element: TableElement) { self.element = element }

    public var description: String {
        "\(element) mixes IPv4 and IPv6 addresses; a session has one family, so name a host of the client's family."
    }
}

/// A change of the table's elements, made in one transaction: all of it or nothing.
public struct TableChange: Sendable, Equatable {
    /// An element to add.
    public struct Addition: Sendable, Equatable {
        public var element: TableElement
        /// Seconds until the kernel removes it by itself; nil: never, or for a `reply` and an `icmpPeer` the set's five days.
        public var lifetime: UInt32?

        public init(element: TableElement, lifetime: UInt32? = nil) {
            self.element = element
            self.lifetime = lifetime
        }
    }

    /// What must not be there afterwards, whether it is there now or not. A removal is by key: the element goes
    /// whatever value (diversion, host) it has in the kernel.
    public var remove: [TableElement]
    /// What must be there afterwards; done after the removals, so an element whose value or lifetime is to change is
    /// in both lists. Adding what is already there with the same value succeeds; with another value it is an error.
    public var add: [Addition]
    /// Four-tuples, as their packets arrive, whose translation the kernel is not to carry on with: user space judges the next packet.
    public var forget: Set<FourTuple> = []
    /// The same for all of them.
    public var forgetsAll = false
    /// The rules at the entrances are looked at, and written anew where they are not what they should be.
    public var renewsEntrances = false

    public init(remove: [TableElement] = [], add: [Addition] = []) {
        self.remove = remove
        self.add = add
    }

    /// Only additions, all with one lifetime.
    public init(adding elements: [TableElement], lifetime: UInt32? = nil) {
        self.init(add: elements.map { Addition(element: $0, lifetime: lifetime) })
    }

    /// Nothing but that.
    public static var renewalOfEntrances: TableChange {
        var change = TableChange()
        change.renewsEntrances = true
        return change
    }

    public var isEmpty: Bool { remove.isEmpty && add.isEmpty && forget.isEmpty && !forgetsAll && !renewsEntrances }
}

extension TableElement: CustomStringConvertible {
    /// As `nft` would print it: the set, the key, the value.
    public var description: String {
        switch self {
        case .involved(let address): "involved { \(address) }"
        case .divert(let tuple): "divert { \(tuple) }"
        case .divertConnection(let tuple): "divert_connection { \(tuple) }"
        case .guard(let tuple): "guard { \(tuple) }"
        case .credit(let client, let home): "credit { \(client)→\(home) }"
        case .divertClient(let client, let home): "divert_client { \(client)→\(home) }"
        case .divertService(let home): "divert_service { \(home) }"
        case .connection(let tuple, let host): "connection { \(tuple) : \(host) }"
        case .client(let client, let home, let host): "client { \(client)→\(home) : \(host) }"
        case .service(let home, let host): "service { \(home) : \(host) }"
        case .source(let tuple, let source): "source { \(tuple) : \(source) }"
        case .guarded(let tuple): "guarded { \(tuple) }"
        case .reply(let tuple): "replies { \(tuple) }"
        case .answering(let address): "answering { \(address) }"
        case .icmpHome(let address): "icmp_home { \(address) }"
        case .icmpPeer(let address): "icmp_peer { \(address) }"
        case .endpointAddress(let number, let address): "endpoint_address { \(number) : \(address) }"
        case .endpointPort(let number, let port, _): "endpoint_port { \(number) : \(port) }"
        case .clientPort(let number, let port, _): "client_port { \(number) : \(port) }"
        }
    }
}
