// SPDX-License-Identifier: GPL-3.0-or-later

/// What the control plane needs to know of one TCP segment that the gateway stopped: a plain value without payload.
@frozen
public struct ObservedSegment: Hashable, Sendable {
    /// Source and destination as they were on the wire.
    public var tuple: FourTuple
    /// SEG.SEQ.
    public var sequence: SequenceNumber
    /// SEG.ACK; meaningful only when `flags` has ACK.
    public var acknowledgement: SequenceNumber
    public var flags: TCPFlags
    /// SEG.WND, unscaled.
    public var window: UInt16
    /// Octets of data, without header and options.
    public var payloadLength: UInt32
    /// TSval and TSecr of the timestamps option (RFC 7323), when there is one.
    public var timestamps: TCPTimestamps?

    @inlinable
    public init(
        tuple: FourTuple, sequence: SequenceNumber, acknowledgement: SequenceNumber, flags: TCPFlags, window: UInt16,
        payloadLength: UInt32, timestamps: TCPTimestamps? = nil
    ) {
        self.tuple = tuple
        self.sequence = sequence
        self.acknowledgement = acknowledgement
        self.flags = flags
        self.window = window
        self.payloadLength = payloadLength
        self.timestamps = timestamps
    }

    /// The sequence number after this segment: data plus one each for SYN and FIN (RFC 9293 section 3.4).
    @inlinable
    public var nextSequence: SequenceNumber {
        sequence.advanced(
            by: Int(payloadLength) + (flags.contains(.syn) ? 1 : 0) + (flags.contains(.fin) ? 1 : 0))
    }
}

/// TSval and TSecr of the timestamps option (RFC 7323 section 3.2).
@frozen
public struct TCPTimestamps: Hashable, Sendable {
    public var value: UInt32
    public var echoReply: UInt32

    @inlinable
    public init(value: UInt32, echoReply: UInt32) {
        self.value = value
        self.echoReply = echoReply
    }
}

/// A TCP segment that we emit, as a value: always addressed, never with options beyond timestamps.
@frozen
public struct TCPSegment: Hashable, Sendable {
    /// Source and destination on the wire.
    public var tuple: FourTuple
    public var sequence: SequenceNumber
    public var acknowledgement: SequenceNumber
    public var flags: TCPFlags
    public var window: UInt16
    /// Octets of data, all zero; the handshake's challenges carry at most one.
    public var payloadLength: UInt16
    public var timestamps: TCPTimestamps?

    @inlinable
    public init(
        tuple: FourTuple, sequence: SequenceNumber, acknowledgement: SequenceNumber, flags: TCPFlags,
        window: UInt16 = 0, payloadLength: UInt16 = 0, timestamps: TCPTimestamps? = nil
    ) {
        self.tuple = tuple
        self.sequence = sequence
        self.acknowledgement = acknowledgement
        self.flags = flags
        self.window = window
        self.payloadLength = payloadLength
        self.timestamps = timestamps
    }
}
