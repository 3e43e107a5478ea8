// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

/// One to-host of a drain and its share.
public struct WeightedHost: Hashable, Sendable {
    /// The to-host; nil for home.
    public var host: HostName?
    /// How many sessions go there for each that goes to a host of weight 1.
    public var weight: UInt32

    public init(host: HostName?, weight: UInt32 = 1) {
        self.host = host
        self.weight = weight
    }

    /// A to-host as it is named: an address keeps the home's port, a range of ports leaves the choice.
    public struct HostName: Hashable, Sendable, CustomStringConvertible {
        public var address: IPAddress
        /// nil for the home's port.
        public var ports: ClosedRange<UInt16>?

        public init(address: IPAddress, ports: ClosedRange<UInt16>? = nil) {
            self.address = address
            self.ports = ports
        }

        /// The endpoints of which one serves a session of `home`; at least one.
        public func endpoints(for home: Endpoint) -> [Endpoint] {
            (ports ?? home.port...home.port).map { Endpoint(address: address, port: $0) }
        }

        public var description: String {
            guard let ports else { return "\(address)" }
            let first = "\(Endpoint(address: address, port: ports.lowerBound))"
            return ports.count == 1 ? first : "\(first)-\(ports.upperBound)"
        }
    }
}

/// Spreads sessions over to-hosts by weight. Each goes where the most is missing, so at every moment the counts are
/// within one of the exact shares; what turns out not to need a place gives it back.
public struct Spread: Sendable {
    public let weights: [UInt32]
    /// Sessions at each host.
    public private(set) var counts: [Int]
    private let sum: Int

    /// - Parameter weights: at least one, none 0.
    public init(weights: [UInt32]) {
        precondition(!weights.isEmpty && !weights.contains(0), "a spread needs hosts with weights")
        self.weights = weights
        counts = Array(repeating: 0, count: weights.count)
        sum = weights.reduce(0) { $0 + Int($1) }
    }

    /// Gives the next session a place: the host's index.
    public mutating func assign() -> Int {
        let total = counts.reduce(0, +) + 1
        var best = 0
        var greatest = Int.min
        for (index, weight) in weights.enumerated() {
            // What is missing, times the sum of the weights: whole numbers stay exact.
            let missing = Int(weight) * total - counts[index] * sum
            if missing > greatest { (best, greatest) = (index, missing) }
        }
        counts[best] += 1
        return best
    }

    /// Counts a session that is at this host already.
    public mutating func occupy(_ index: Int) { counts[index] += 1 }

    /// Takes a place back.
    public mutating func release(_ index: Int) { counts[index] = max(0, counts[index] - 1) }
}

/// Lets things begin at a rate: evenly, and never more than a tenth of a second's worth at once after a delay.
public struct DrainPace: Sendable {
    /// Nanoseconds between two beginnings.
    private let interval: UInt64
    private var next: UInt64?
    /// How much of a delay is made up for, in nanoseconds.
    static let patience: UInt64 = 100_000_000

    /// - Parameter rate: beginnings per second; more than 0.
    public init(rate: Double) { interval = UInt64(max(1, (1e9 / rate).rounded())) }

    /// When the next may begin, in nanoseconds; nil for at once, since none has begun yet.
    public var nextAt: UInt64? { next }

    /// Whether one may begin now; it is counted then.
    public mutating func take(at now: UInt64) -> Bool {
        let due = next ?? now
        guard due <= now else { return false }
        let earliest = now > Self.patience ? now - Self.patience : 0
        next = max(due, earliest) + interval
        return true
    }

    /// Time has stood still: nothing is to be made up for.
    public mutating func rest() { next = nil }
}
