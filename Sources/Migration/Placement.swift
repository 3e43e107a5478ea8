// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// Where the connections of a session go: to which of the to-host's ports, and as whose.
public struct Placement: Hashable, Sendable {
    /// The to-host; home's own endpoint for the way home.
    public var host: Endpoint
    /// Who has to carry the connections there; nil for whom the request names.
    public var datapath: Datapath?
    /// The client's port as that host is to see it; nil for its own.
    public var sourcePort: UInt16?
    /// Whether another session decides about the four-tuple that the host has from this one: see `Session.yields`.
    public var yields = false
    /// In passive mode: see `LocatedConnection.probePort`. By client side.
    public var probePorts: [FourTuple: UInt16] = [:]

    public init(host: Endpoint, datapath: Datapath? = nil, sourcePort: UInt16? = nil) {
        self.host = host
        self.datapath = datapath
        self.sourcePort = sourcePort
    }
}

/// Ports that can stand in for a client's, in random order, none twice. A port that only root may use stands for another
/// one: servers of NFS and of the r-commands take it for a proof. The three ranges are those of the kernel's own NAT
/// (`nf_nat_l4proto_unique_tuple`, net/netfilter/nf_nat_core.c).
public struct SourcePortSearch: Sequence, IteratorProtocol, Sendable {
    private let range: ClosedRange<UInt16>
    private let own: UInt16
    private var offset: UInt64
    private let step: UInt64
    private var left: Int

    /// - Parameters:
    ///   - port: the client's own port, which is not among them.
    ///   - seed: a random number; the same one gives the same order.
    public init(for port: UInt16, seed: UInt64) {
        range = Self.range(like: port)
        own = port
        let count = UInt64(range.count)
        offset = seed % count
        // A step that has no divisor in common with the count visits each port once.
        var step = seed / count % count | 1
        while !Self.isPrime(step, to: count) { step = (step + 1) % count }
        self.step = step
        left = range.count
    }

    /// The ports that are like this one.
    public static func range(like port: UInt16) -> ClosedRange<UInt16> {
        switch port {
        case ..<512: 1...511
        case ..<1024: 600...1023
        default: 1024...65535
        }
    }

    private static func isPrime(_ one: UInt64, to other: UInt64) -> Bool {
        var (one, other) = (one, other)
        while other != 0 { (one, other) = (other, one % other) }
        return one == 1
    }

    public mutating func next() -> UInt16? {
        while left > 0 {
            left -= 1
            offset = (offset + step) % UInt64(range.count)
            let port = range.lowerBound + UInt16(offset)
            if port != own { return port }
        }
        return nil
    }
}
