// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import CNetfilter
internal import Glibc
internal import Wire

/// A packet of the batch being decided.
@usableFromInline
@safe
struct QueuedPacket {
    /// The octets from the IP header on, in the receive buffer.
    @usableFromInline let payload: UnsafeMutablePointer<UInt8>
    /// 0 for a packet that could not be read.
    @usableFromInline let length: Int
    @usableFromInline let metadata: PacketMetadata
    /// The kernel's number of the packet in its queue.
    let number: UInt32
    @usableFromInline var verdict: Verdict
}

/// One packet queue as system calls see it: its socket, the receive buffers and the batch being decided. Everything that
/// is done per batch is here, and nothing generic.
///
/// Unchecked: made on one thread, then used on the queue's thread alone, except for `counters`.
@usableFromInline
@safe
final class QueueChannel: @unchecked Sendable {
    /// Octets for one message: the longest attribute, and room for all the others.
    private static let slotLength = 65536 + 2048
    /// A huge page of most processors; where pages are others, the alignment does no harm.
    private static let largePage = 2 << 20
    /// Octets of a packet from which on a smaller batch is better, and how many such packets make one.
    private static let largePacket = 16384
    private static let batchOfLargePackets = 4

    let queue: UInt16
    /// The netlink port of its socket, by which others can wake who receives.
    @usableFromInline let portNumber: UInt32
    let cells = QueueCounterCells()
    let shortfall: QueueBufferShortfall?
    /// The batch being decided.
    @usableFromInline let packets: UnsafeMutablePointer<QueuedPacket>

    private var socket: NetlinkSocket?
    private let fileDescriptor: Int32
    private let maximumLength: Int
    private let batch: Int
    /// Whether a packet that comes cut is longer than a message can be.
    private let copiesAll: Bool
    private let slots: UnsafeMutableRawPointer
    private let buffers: UnsafeMutablePointer<iovec>
    private let lengths: UnsafeMutablePointer<UInt32>
    private var verdicts: VerdictBuffer
    private var held: HeldPackets
    private var count = 0
    private var counters = QueueCounters()
    /// How many packets are asked for next.
    private var nextBatch: Int

    @usableFromInline
    init(queue: UInt16, options: QueueOptions) throws(NetlinkError) {
        let socket = try NetlinkSocket()
        let descriptor = socket.fileDescriptor
        shortfall = socket.setBuffers(of: queue, receive: options.receiveBuffer, send: options.sendBuffer)
        // The kernel's complaint about a verdict shall not carry the verdict, packet and all.
        _ = socket.setOption(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        try socket.bind(queue: queue, maximumLength: options.maximumLength, copyRange: options.copyRange)
        copiesAll = options.copyRange == QueueOptions.wholePackets

        batch = min(max(options.batch, 1), 256)
        nextBatch = batch
        self.queue = queue
        portNumber = socket.portNumber
        fileDescriptor = descriptor
        maximumLength = Int(options.maximumLength)
        // Every packet is copied in and out here: with one large page the processor translates the addresses once.
        let length = (batch * Self.slotLength + Self.largePage - 1) & ~(Self.largePage - 1)
        unsafe slots = .allocate(byteCount: length, alignment: Self.largePage)
        _ = unsafe madvise(slots, length, Int32(MADV_HUGEPAGE))
        unsafe buffers = .allocate(capacity: batch)
        unsafe lengths = .allocate(capacity: batch)
        unsafe packets = .allocate(capacity: batch)
        verdicts = VerdictBuffer(queue: queue, capacity: batch)
        held = HeldPackets(capacity: options.maximumHeld)
        for index in 0..<batch {
            unsafe buffers[index] = unsafe iovec(
                iov_base: slots + index * Self.slotLength, iov_len: Self.slotLength)
            unsafe lengths[index] = 0
        }
        self.socket = consume socket
    }

    deinit {
        unsafe slots.deallocate()
        unsafe buffers.deallocate()
        unsafe lengths.deallocate()
        unsafe packets.deallocate()
    }

    // MARK: - Receiving

    /// Waits for packets, or for any other message, and receives up to a batch of them; how many are in `packets`.
    @usableFromInline
    func receive() -> Int { receive(waits: true) }

    /// Receives up to a batch of packets that are there, without waiting.
    @usableFromInline
    func receiveWaiting() -> Int { receive(waits: false) }

    private func receive(waits: Bool) -> Int {
        count = 0
        counters.systemCalls += 1
        let received = unsafe Int(
            nfqmig_receive_many(fileDescriptor, buffers, UInt32(nextBatch), lengths, waits ? 0 : 1))
        guard received > 0 else {
            failed(errno: Int32(-received))
            return 0
        }
        var octets = 0
        for index in 0..<received {
            let length = unsafe Int(lengths[index])
            octets += length
            unsafe read(slots + index * Self.slotLength, length: length)
        }
        // A large batch of large packets is gone from the processor's cache before it is sent.
        nextBatch = octets > received * Self.largePacket ? min(batch, Self.batchOfLargePackets) : batch
        if count > 0 { counters.batches += 1 } else { cells.publish(counters) }
        return count
    }

    /// Most packets that can have been received by the kernel's side of the socket at one time.
    @usableFromInline var mostWaiting: Int { maximumLength }

    /// CLOCK_MONOTONIC_COARSE in nanoseconds: a few instructions, and no system call.
    @usableFromInline var time: UInt64 {
        var now = timespec()
        _ = unsafe clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
        return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
    }

    private func failed(errno number: Int32) {
        switch number {
        case ENOBUFS:
            // Said once, then cleared: what still is in the buffer can be received.
            counters.overruns += 1
            cells.publish(counters)
        case 0, EAGAIN, EINTR:
            break
        default:
            // ENOMEM, say. Packets wait in the queue meanwhile.
            usleep(1000)
        }
    }

    private func read(_ message: UnsafeMutableRawPointer, length: Int) {
        let start = unsafe message.assumingMemoryBound(to: UInt8.self)
        let octets = unsafe Span(_unsafeStart: UnsafePointer(start), count: min(length, Self.slotLength))
        switch QueueMessage(octets) {
        case .packet(let number, let payload, let length, let metadata):
            counters.octets += UInt64(length)
            if !metadata.isWhole && copiesAll { counters.truncated += 1 }
            unsafe append(number, start + payload.lowerBound, payload.count, metadata)
        case .unreadable(let number):
            counters.malformed += 1
            let metadata = PacketMetadata(hook: 0, checksum: .complete, mark: 0, isWhole: false)
            unsafe append(number, start, 0, metadata)
        case .failure:
            counters.verdictErrors += 1
        case .malformed:
            counters.malformed += 1
        case .other:
            break
        }
    }

    private func append(
        _ number: UInt32, _ payload: UnsafeMutablePointer<UInt8>, _ length: Int, _ metadata: PacketMetadata
    ) {
        let packet = unsafe QueuedPacket(
            payload: payload, length: length, metadata: metadata, number: number, verdict: .drop)
        unsafe (packets + count).initialize(to: packet)
        count += 1
    }

    // MARK: - Verdicts

    /// Sends the verdicts of the batch, each exactly once; what is held gets none, and leaves the batch.
    @usableFromInline
    func sendVerdicts() {
        var decided = 0
        for index in 0..<count {
            if unsafe packets[index].verdict.decision == .hold {
                if unsafe held.insert(packets[index]) {
                    counters.held += 1
                    continue
                }
                unsafe packets[index].verdict = .drop
            }
            if decided != index { unsafe packets[decided] = packets[index] }
            decided += 1
        }
        count = decided
        for index in 0..<count {
            // The kernel puts the payload of a verdict in place of the packet: a part must not go back.
            if unsafe packets[index].verdict.rewritten && !packets[index].metadata.isWhole {
                unsafe packets[index].verdict = .drop
            }
            let verdict = unsafe packets[index].verdict
            switch verdict.decision {
            case .accept, .repeat, .hold:
                counters.accepted += 1
                if verdict.rewritten || verdict.mark != nil { counters.rewritten += 1 }
            case .drop:
                counters.dropped += 1
            }
        }
        counters.packets += UInt64(count)
        cells.publish(counters)
        send(0..<count)
        count = 0
    }

    /// Sends the verdict of a packet that is held. One that is not held (any more) is left alone: it has its verdict.
    /// Between two batches only.
    @usableFromInline
    func release(_ number: UInt32, _ decision: Verdict.Decision) {
        guard decision != .hold, let mark = held.remove(number) else { return }
        let metadata = PacketMetadata(hook: 0, checksum: .complete, mark: mark, isWhole: true, number: number)
        let packet = unsafe QueuedPacket(
            payload: slots.assumingMemoryBound(to: UInt8.self), length: 0, metadata: metadata, number: number,
            verdict: Verdict(decision: decision))
        unsafe packets.initialize(to: packet)
        count = 1
        sendVerdicts()
    }

    /// Sends the verdicts of these packets in one call or, when the kernel cannot take so much at once, in halves.
    private func send(_ range: Range<Int>) {
        var pauses = 0
        while !range.isEmpty {
            unsafe verdicts.encode(UnsafeBufferPointer(start: packets + range.lowerBound, count: range.count))
            counters.systemCalls += 1
            let number = verdicts.send(to: fileDescriptor)
            switch number {
            case 0:
                return
            case EINTR:
                continue
            case ENOBUFS, ENOMEM, EMSGSIZE, EAGAIN:
                if range.count > 1 {
                    let middle = range.lowerBound + range.count / 2
                    send(range.lowerBound..<middle)
                    send(middle..<range.upperBound)
                    return
                }
                if unsafe packets[range.lowerBound].verdict.rewritten {
                    // Not even alone: TCP repeats what is dropped, but not what is forgotten in a queue.
                    unsafe packets[range.lowerBound].verdict = .drop
                    counters.accepted -= 1
                    counters.rewritten -= 1
                    counters.dropped += 1
                    cells.publish(counters)
                    continue
                }
                pauses += 1
                if pauses > 1000 { break }
                usleep(1000)
                continue
            default:
                break
            }
            counters.verdictErrors += UInt64(range.count)
            cells.publish(counters)
            return
        }
    }

    // MARK: - The end

    /// Gives the queue back; the kernel drops the packets that wait in it.
    @usableFromInline
    func close() {
        cells.publish(counters)
        socket = nil
    }
}
