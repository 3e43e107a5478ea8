// SPDX-License-Identifier: GPL-3.0-or-later

internal import CNetfilter
internal import Wire

/// One netlink message that the kernel sent to a queue's socket, read (linux/netfilter/nfnetlink_queue.h).
///
/// Headers and attribute headers are in host byte order, attribute values in network byte order.
package enum QueueMessage: Equatable {
    /// A packet that wants a verdict: its number, where its octets lie in the message, how many it has in all, and what
    /// is known of it.
    case packet(number: UInt32, payload: Range<Int>, length: Int, PacketMetadata)
    /// A packet that wants a verdict and cannot be read.
    case unreadable(number: UInt32)
    /// The kernel did not take a verdict: the error number, positive.
    case failure(errno: Int32)
    /// A message cut before the packet's number, so that not even a verdict is possible.
    case malformed
    /// Something that needs no answer: an acknowledgement, or a message of another kind.
    case other

    /// NFNL_SUBSYS_QUEUE and NFQNL_MSG_PACKET, as in nlmsg_type.
    static let packetType = UInt16(NFNL_SUBSYS_QUEUE) << 8 | UInt16(NFQNL_MSG_PACKET.rawValue)
    static let errorType: UInt16 = 2
    static let headerLength = 16
    static let familyHeaderLength = 4
    static let attributeHeaderLength = 4
    /// Bits of nla_type that are not the type (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
    static let attributeTypeMask: UInt16 = 0x3fff
}

extension QueueMessage {
    package init(_ octets: Span<UInt8>) {
        guard octets.count >= Self.headerLength else {
            self = .malformed
            return
        }
        let type = octets.hostUInt16(at: 4)
        guard type == Self.packetType else {
            self = type == Self.errorType ? Self.error(octets) : .other
            return
        }
        self = Self.packet(octets)
    }

    private static func error(_ octets: Span<UInt8>) -> QueueMessage {
        guard octets.count >= headerLength + 4 else { return .malformed }
        let number = Int32(truncatingIfNeeded: octets.hostUInt32(at: headerLength))
        return number == 0 ? .other : .failure(errno: 0 &- number)
    }

    private static func packet(_ octets: Span<UInt8>) -> QueueMessage {
        let announced = Int(octets.hostUInt32(at: 0))
        // A message cut on its way still begins with the packet's number, so it is read as far as it goes.
        let end = min(announced, octets.count)
        var number: UInt32?
        var payload: Range<Int>?
        var hook: UInt8 = 0
        var mark: UInt32 = 0
        var information: UInt32 = 0
        var wireLength: UInt32?
        var isIntact = announced <= octets.count

        var offset = headerLength + familyHeaderLength
        while offset + attributeHeaderLength <= end {
            let length = Int(octets.hostUInt16(at: offset))
            guard length >= attributeHeaderLength, offset + length <= end else {
                isIntact = false
                break
            }
            let value = offset + attributeHeaderLength
            let valueLength = length - attributeHeaderLength
            switch Int(octets.hostUInt16(at: offset + 2) & attributeTypeMask) {
            case Int(NFQA_PACKET_HDR.rawValue) where valueLength >= 7:
                number = octets.networkUInt32(at: value)
                hook = octets[value + 6]
            case Int(NFQA_MARK.rawValue) where valueLength >= 4:
                mark = octets.networkUInt32(at: value)
            case Int(NFQA_SKB_INFO.rawValue) where valueLength >= 4:
                information = octets.networkUInt32(at: value)
            case Int(NFQA_CAP_LEN.rawValue) where valueLength >= 4:
                wireLength = octets.networkUInt32(at: value)
            case Int(NFQA_PAYLOAD.rawValue):
                payload = value..<(value + valueLength)
            default:
                break
            }
            offset += (length + 3) & ~3
        }

        guard let number else { return .malformed }
        guard isIntact, let payload, !payload.isEmpty else { return .unreadable(number: number) }
        let metadata = PacketMetadata(
            hook: hook, checksum: checksumState(information), mark: mark,
            isWhole: wireLength.map { Int($0) == payload.count } ?? true, number: number)
        return .packet(
            number: number, payload: payload, length: wireLength.map { Int($0) } ?? payload.count, metadata)
    }

    /// A packet of several segments also counts as not ready; what matters is that the kernel cuts it.
    private static func checksumState(_ information: UInt32) -> ChecksumState {
        if information & UInt32(NFQA_SKB_GSO) != 0 { return .segmented }
        return information & UInt32(NFQA_SKB_CSUMNOTREADY) != 0 ? .pending : .complete
    }
}

extension Span where Element == UInt8 {
    fileprivate func hostUInt16(at offset: Int) -> UInt16 {
        UInt16(littleEndian: UInt16(self[offset]) | UInt16(self[offset + 1]) << 8)
    }

    fileprivate func hostUInt32(at offset: Int) -> UInt32 {
        let low = UInt32(self[offset]) | UInt32(self[offset + 1]) << 8
        return UInt32(littleEndian: low | UInt32(self[offset + 2]) << 16 | UInt32(self[offset + 3]) << 24)
    }

    fileprivate func networkUInt32(at offset: Int) -> UInt32 {
        let high = UInt32(self[offset]) << 24 | UInt32(self[offset + 1]) << 16
        return high | UInt32(self[offset + 2]) << 8 | UInt32(self[offset + 3])
    }
}
