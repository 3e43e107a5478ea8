// SPDX-License-Identifier: GPL-3.0-or-later

/// The control bits of a TCP header (RFC 9293 section 3.1; octet 13).
@frozen
public struct TCPFlags: OptionSet, Hashable, Sendable {
    public var rawValue: UInt8

    @inlinable
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    @inlinable public static var fin: TCPFlags { TCPFlags(rawValue: 0x01) }
    @inlinable public static var syn: TCPFlags { TCPFlags(rawValue: 0x02) }
    @inlinable public static var rst: TCPFlags { TCPFlags(rawValue: 0x04) }
    @inlinable public static var psh: TCPFlags { TCPFlags(rawValue: 0x08) }
    @inlinable public static var ack: TCPFlags { TCPFlags(rawValue: 0x10) }
    @inlinable public static var urg: TCPFlags { TCPFlags(rawValue: 0x20) }

    /// Whether this segment opens a connection: SYN without ACK, RST or FIN.
    @inlinable
    public var opensConnection: Bool { intersection([.syn, .ack, .rst, .fin]) == .syn }
}

extension TCPFlags: CustomStringConvertible {
    /// In tcpdump's letters: `S` SYN, `F` FIN, `R` RST, `P` PSH, `U` URG, `.` ACK.
    public var description: String {
        let letters: [(TCPFlags, Character)] = [
            (.syn, "S"), (.fin, "F"), (.rst, "R"), (.psh, "P"), (.urg, "U"), (.ack, "."),
        ]
        return String(letters.filter { contains($0.0) }.map(\.1))
    }
}
