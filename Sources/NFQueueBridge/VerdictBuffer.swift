// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import CNetfilter
internal import Glibc
internal import Wire

/// The verdict messages of a batch, as one datagram gathered from several places: our own headers, and the rewritten
/// packets out of the receive buffer.
///
/// One message is, in octets: nlmsghdr 16, nfgenmsg 4, NFQA_VERDICT_HDR 4 + 8, NFQA_MARK 4 + 4, and for a rewritten packet
/// NFQA_PAYLOAD 4 + its length, padded to a multiple of four.
@safe
struct VerdictBuffer: ~Copyable {
    private static let plainLength = 40
    private static let rewrittenLength = 44

    private let queue: UInt16
    /// The headers of all messages, one after the other.
    private let headers: UnsafeMutableRawPointer
    private let parts: UnsafeMutablePointer<iovec>
    private var partCount = 0

    init(queue: UInt16, capacity: Int) {
        self.queue = queue
        unsafe headers = .allocate(byteCount: capacity * Self.rewrittenLength, alignment: 16)
        unsafe parts = .allocate(capacity: 2 * capacity)
    }

    deinit {
        unsafe headers.deallocate()
        unsafe parts.deallocate()
    }

    /// Encodes the verdicts of `packets`, in place of what was encoded before. The packets' octets are used by `send`.
    mutating func encode(_ packets: UnsafeBufferPointer<QueuedPacket>) {
        partCount = 0
        var offset = 0
        var runStart = 0
        for index in packets.indices {
            let packet = unsafe packets[index]
            writeHeader(of: packet, at: offset)
            guard packet.verdict.rewritten && packet.verdict.decision != .drop else {
                offset += Self.plainLength
                continue
            }
            offset += Self.rewrittenLength
            unsafe append(headers + runStart, offset - runStart)
            // The padding is whatever follows the packet in the receive buffer, whose slots are longer than any packet.
            unsafe append(UnsafeMutableRawPointer(packet.payload), (packet.length + 3) & ~3)
            runStart = offset
        }
        if offset > runStart { unsafe append(headers + runStart, offset - runStart) }
    }

    private mutating func append(_ start: UnsafeMutableRawPointer, _ length: Int) {
        unsafe parts[partCount] = unsafe iovec(iov_base: start, iov_len: length)
        partCount += 1
    }

    private func writeHeader(of packet: QueuedPacket, at offset: Int) {
        let isRewritten = packet.verdict.rewritten && packet.verdict.decision != .drop
        let length = isRewritten ? Self.rewrittenLength + (packet.length + 3) & ~3 : Self.plainLength
        let type = UInt16(NFNL_SUBSYS_QUEUE) << 8 | UInt16(NFQNL_MSG_VERDICT.rawValue)
        // Sending the mark that the packet has is the same as sending none, and keeps the layout.
        let mark = packet.verdict.mark ?? packet.metadata.mark
        let header = unsafe headers + offset
        unsafe header.storeBytes(of: UInt32(length), as: UInt32.self)
        unsafe header.storeBytes(of: type, toByteOffset: 4, as: UInt16.self)
        unsafe header.storeBytes(of: UInt16(NLM_F_REQUEST), toByteOffset: 6, as: UInt16.self)
        unsafe header.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        unsafe header.storeBytes(of: UInt8(AF_UNSPEC), toByteOffset: 16, as: UInt8.self)
        unsafe header.storeBytes(of: UInt8(NFNETLINK_V0), toByteOffset: 17, as: UInt8.self)
        unsafe header.storeBytes(of: queue.bigEndian, toByteOffset: 18, as: UInt16.self)
        unsafe header.storeBytes(of: 12, toByteOffset: 20, as: UInt16.self)
        unsafe header.storeBytes(of: UInt16(NFQA_VERDICT_HDR.rawValue), toByteOffset: 22, as: UInt16.self)
        unsafe header.storeBytes(
            of: UInt32(packet.verdict.decision.rawValue).bigEndian, toByteOffset: 24, as: UInt32.self)
        unsafe header.storeBytes(of: packet.number.bigEndian, toByteOffset: 28, as: UInt32.self)
        unsafe header.storeBytes(of: 8, toByteOffset: 32, as: UInt16.self)
        unsafe header.storeBytes(of: UInt16(NFQA_MARK.rawValue), toByteOffset: 34, as: UInt16.self)
        unsafe header.storeBytes(of: mark.bigEndian, toByteOffset: 36, as: UInt32.self)
        guard isRewritten else { return }
        unsafe header.storeBytes(of: UInt16(4 + packet.length), toByteOffset: 40, as: UInt16.self)
        unsafe header.storeBytes(of: UInt16(NFQA_PAYLOAD.rawValue), toByteOffset: 42, as: UInt16.self)
    }

    /// Sends what was encoded to the kernel and returns 0 or the error number. The kernel has acted on all of it when
    /// this returns; its complaints about single verdicts come through the socket.
    func send(to socket: Int32) -> Int32 {
        var message = unsafe msghdr()
        unsafe message.msg_iov = parts
        unsafe message.msg_iovlen = partCount
        // A netlink socket without a peer sends to port 0, which is the kernel.
        return unsafe sendmsg(socket, &message, 0) < 0 ? errno : 0
    }
}

/// One batch of verdicts, encoded as often as the micro benchmarks want.
@_spi(Benchmarks)
@safe
public final class VerdictEncoding {
    private var buffer: VerdictBuffer
    private let packets: UnsafeMutableBufferPointer<QueuedPacket>
    private let payload: UnsafeMutablePointer<UInt8>

    public init(count: Int, isRewritten: Bool) {
        buffer = VerdictBuffer(queue: 0, capacity: count)
        unsafe payload = .allocate(capacity: 1504)
        unsafe packets = .allocate(capacity: count)
        let metadata = PacketMetadata(hook: 0, checksum: .complete, mark: 0, isWhole: true)
        for index in 0..<count {
            let packet = unsafe QueuedPacket(
                payload: payload, length: 1500, metadata: metadata, number: UInt32(index),
                verdict: isRewritten ? .acceptRewritten : .accept)
            unsafe packets.initializeElement(at: index, to: packet)
        }
    }

    deinit {
        unsafe packets.deallocate()
        unsafe payload.deallocate()
    }

    public func encode() { unsafe buffer.encode(UnsafeBufferPointer(packets)) }
}
