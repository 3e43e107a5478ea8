// SPDX-License-Identifier: GPL-3.0-or-later

/// How a packet queue is set up.
public struct QueueOptions: Hashable, Sendable {
    /// How many packets may wait for a verdict, those in the socket and those being decided (NFQA_CFG_QUEUE_MAXLEN);
    /// the kernel drops what comes on top. The kernel's own default is 1024.
    public var maximumLength: UInt32 = 4096
    /// Octets of each packet that the kernel hands over, from the IP header on (NFQA_CFG_PARAMS).
    public var copyRange = wholePackets
    /// Octets of receive buffer to ask for. The kernel accounts, not allocates them, and counts its own overhead: its
    /// default of 208 KiB holds 256 small packets or 92 of 1400 octets.
    public var receiveBuffer: Int32 = 32 << 20
    /// Octets of send buffer to ask for: a batch of rewritten packets of 64 KiB each has to fit.
    public var sendBuffer: Int32 = 64 << 20
    /// Packets taken and decided with one pair of system calls, 1 to 256.
    public var batch = 32
    /// How many packets may wait for `QueueThread.release`; what comes on top is dropped.
    public var maximumHeld = 1024
    /// Whether the thread is pinned to the CPU with the queue's number, modulo the number of CPUs.
    public var isPinned = true

    /// The copy range that gives all of a packet that fits into a message.
    public static let wholePackets: UInt16 = 0xffff

    public init() {}

    /// Asks for buffers that a full queue of packets of `mtu` octets fits, or a burst of 512 uncut ones of many segments, and
    /// a batch's verdicts when every packet comes back rewritten.
    public mutating func sizeBuffers(mtu: Int) {
        // What the kernel counts for a packet beyond its octets: headers, attributes, and rounding up to a page.
        let overhead = 2048
        let largest = 65536 + overhead
        receiveBuffer = Int32(clamping: max(Int(maximumLength) * (mtu + overhead), 512 * largest))
        sendBuffer = Int32(clamping: 2 * batch * largest)
    }
}

/// The kernel gave a queue's socket smaller buffers than were asked for.
public struct QueueBufferShortfall: Hashable, Sendable, CustomStringConvertible {
    public var queue: UInt16
    /// Octets granted (as SO_RCVBUF and SO_SNDBUF count, without the kernel's doubling).
    public var receive: Int32
    public var send: Int32

    public var description: String {
        "Queue \(queue) has buffers of \(receive) octets for packets and \(send) for verdicts, less than asked for: "
            + "bursts may be dropped; raise net.core.rmem_max and net.core.wmem_max, or grant CAP_NET_ADMIN."
    }
}
