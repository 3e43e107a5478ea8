// SPDX-License-Identifier: GPL-3.0-or-later

public import Wire

extension ResetHandshake {
    /// Whom to reset, and what is known of the connection.
    public struct Order: Hashable, Sendable {
        /// Which end of the connection the victim is.
        @frozen
        public enum Kind: UInt8, Hashable, Sendable {
            /// The host that is to lose the connection. It opens none of its own on this four-tuple.
            case server
            /// The end that will open the next connection, perhaps from the same port: its SYN ends the handshake.
            case client
        }

        /// How far the connection had got when it was last seen.
        @frozen
        public enum ConnectionState: UInt8, Hashable, Sendable {
            /// Synchronised: ESTABLISHED or any state of the close (RFC 9293 section 3.3.2).
            case established
            /// The client's SYN was seen, no answer to it.
            case synSent
            /// The server's SYN-ACK was seen, no answer to it.
            case synReceived
            /// Synchronised, and the client has sent its FIN: a client is left alone, and answered if it speaks.
            case leaving
        }

        /// How numbers are guessed before the victim has told its own.
        @frozen
        public enum ProbeStyle: UInt8, Hashable, Sendable {
            /// Four segments, one in each combination of the halves of both number spaces: at least one lies outside
            /// every window, so that RFC 9293 section 3.10.7.4 has it answered, and one of them looks merely old, so
            /// that a stateful packet filter at the victim lets it pass.
            case quadrants
            /// One segment of random numbers; for every retry both grow by 2³⁰ − 1, the largest window (RFC 7323).
            case paper
        }

        /// Source and destination of the spoofed segments, as on the wire at the victim: impersonated → victim.
        public var tuple: FourTuple
        public var kind: Kind
        public var state: ConnectionState
        public var probe: ProbeStyle

        public init(
            tuple: FourTuple, kind: Kind, state: ConnectionState = .established, probe: ProbeStyle = .quadrants
        ) {
            self.tuple = tuple
            self.kind = kind
            self.state = state
            self.probe = probe
        }
    }

    /// Intervals and limits. Times are nanoseconds.
    public struct Policy: Hashable, Sendable {
        /// Waits between the first attempts; the last one repeats. Linux answers one challenge without payload per
        /// 500 ms (`tcp_invalid_ratelimit`), so the last wait should be longer than that.
        public var retryIntervals: [UInt64] = [20_000_000, 50_000_000, 100_000_000, 200_000_000, 600_000_000]
        /// After this time without proof the outcome is `unproven`.
        public var timeout: UInt64 = 3_000_000_000
        /// How long a host that may hold the connection half open must be silent after its RST. SYN-ACKs are repeated
        /// after one second (RFC 6298 section 2.1).
        public var quietPeriod: UInt64 = 2_000_000_000
        /// How many times a new acknowledgement number is followed by a proving challenge at once; later ones draw a
        /// RST only and the challenge waits for the next interval.
        public var promptRounds = 8
        /// How long a client that has been sent a RST is left to open its next connection before it is challenged again.
        public var clientInterval: UInt64 = 400_000_000
        /// After this many RSTs they are sent at most once per first retry interval.
        public var promptResets = 256
        /// How far a client's numbers may lie from its first answer's. Beyond that they belong to another connection,
        /// which must not be harmed.
        public var guardWindow: UInt32 = 1 << 23
        /// SEG.WND of challenges. Not 0, which would close the victim's send window if the numbers were right.
        public var window: UInt16 = 1024

        public init() {}

        func interval(_ attempt: Int) -> UInt64 {
            guard let last = retryIntervals.last else { return 600_000_000 }
            return attempt < retryIntervals.count ? retryIntervals[attempt] : last
        }
    }

    /// What the handshake has come to.
    @frozen
    public enum Outcome: String, Hashable, Sendable, Codable {
        /// The victim has no such connection any more: it said so.
        case proven
        /// Nothing proved it within the time-out. Segments that still come are answered, and may prove it later.
        case unproven
        /// The client opens a new connection on the same four-tuple; so it has lost the old one. Nothing more is sent.
        case reconnected
    }

    /// What the caller has to do, in this order.
    @frozen
    public enum Action: Hashable, Sendable {
        /// Send the segment, marked so that the gateway does not track or divert it.
        case send(TCPSegment)
        /// Take note of the outcome. `unproven` may be followed by `proven` or `reconnected` later.
        case finish(Outcome)
    }

    /// What has happened so far. Times are those that the caller gave.
    public struct Report: Hashable, Sendable {
        /// Challenge segments sent; a set of four counts as four.
        public internal(set) var challenges = 0
        /// RSTs sent.
        public internal(set) var resets = 0
        /// When the victim first told its numbers.
        public internal(set) var firstAnswer: UInt64?
        /// When the victim proved that it has no such connection.
        public internal(set) var proof: UInt64?
        /// Segments that told nothing or were not to be believed.
        public internal(set) var ignored = 0

        public init() {}
    }
}
