// SPDX-License-Identifier: GPL-3.0-or-later

import CLinuxShims
import Foundation
import NFQueueBridge
import Synchronization

/// A network namespace of a test's own, in which everything sent to 198.18.0.0/24 goes through packet queues.
enum QueueLab {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    /// Whether this process and this kernel can divert packets to queues; found out once.
    static let isAvailable: Bool = {
        do {
            try inNamespace { try divertAll() }
            return true
        } catch {
            return false
        }
    }()

    static let requirement = "needs root, and nft_queue or xt_NFQUEUE"

    /// Runs `body` on a thread of its own in a new network namespace, whose lo has all of 198.18.0.0/24.
    static func inNamespace<Result: Sendable>(_ body: @escaping @Sendable () throws -> Result) throws -> Result {
        let outcome = Mutex<Swift.Result<Result, any Error>?>(nil)
        let box = Box(outcome)
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            let result = Swift.Result {
                guard nfqmig_unshare_network() == 0 else { throw Failure(description: "cannot make a namespace") }
                try shell("ip link set lo up && ip address add 198.18.0.1/24 dev lo")
                return try body()
            }
            box.outcome.withLock { $0 = result }
            done.signal()
        }
        done.wait()
        guard let result = box.outcome.withLock({ $0 }) else { throw Failure(description: "no result") }
        return try result.get()
    }

    private final class Box<Value: ~Copyable & Sendable>: Sendable {
        let outcome: Value
        init(_ outcome: consuming Value) { self.outcome = outcome }
    }

    /// Sends what goes to 198.18.0.0/24 to `queues` before conntrack: with nft's own queue statement, or through the xt
    /// target where the kernel lacks it. `unmarked`: only what has no mark, so that a repeated packet goes on.
    static func divertAll(to queues: ClosedRange<UInt16> = 0...0, unmarked: Bool = false) throws {
        let (first, last) = (queues.lowerBound, queues.upperBound)
        let numbers = first == last ? "\(first)" : "\(first)-\(last)"
        let table =
            "add table inet lab; "
            + "add chain inet lab raw { type filter hook prerouting priority -300; }; "
            + "add rule inet lab raw ip daddr 198.18.0.0/24 \(unmarked ? "meta mark 0 " : "")queue num \(numbers)"
        do {
            try shell("nft '\(table)' 2>/dev/null")
        } catch {
            let target = first == last ? "--queue-num \(first)" : "--queue-balance \(first):\(last)"
            let match = unmarked ? "-m mark --mark 0 " : ""
            try shell("iptables-nft -t raw -A PREROUTING -d 198.18.0.0/24 \(match)-j NFQUEUE \(target)")
        }
    }

    /// Runs a command in the calling thread's network namespace: a child inherits its parent thread's.
    static func shell(_ command: String) throws {
        var process: pid_t = 0
        let words: [String] = ["sh", "-c", command, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        let strings = words.map { strdup($0) }
        defer { for string in strings { free(string) } }
        let arguments: [UnsafeMutablePointer<CChar>?] = strings.prefix(3) + [nil]
        let environment: [UnsafeMutablePointer<CChar>?] = strings.suffix(1) + [nil]
        guard posix_spawn(&process, "/bin/sh", nil, nil, arguments, environment) == 0 else {
            throw Failure(description: "cannot run sh")
        }
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 && errno == EINTR {}
        if status != 0 { throw Failure(description: "failed: \(command)") }
    }

    /// What the kernel says of a queue in this namespace (/proc/net/netfilter/nfnetlink_queue).
    struct KernelState: Sendable {
        /// The netlink port of the socket that has the queue.
        var port: Int64
        var waiting: UInt64
        var dropped: UInt64
        var userDropped: UInt64
        /// Packets numbered so far.
        var sequence: UInt64
    }

    static func kernelState(of queue: UInt16) throws -> KernelState? {
        let text = try String(contentsOfFile: "/proc/thread-self/net/netfilter/nfnetlink_queue", encoding: .utf8)
        for line in text.split(separator: "\n") {
            let columns = line.split(separator: " ").compactMap { Int64($0) }
            if columns.count >= 8, columns[0] == Int64(queue) {
                return KernelState(
                    port: columns[1], waiting: UInt64(columns[2]), dropped: UInt64(columns[5]),
                    userDropped: UInt64(columns[6]), sequence: UInt64(columns[7]))
            }
        }
        return nil
    }

    /// Waits until `condition` holds, at most `seconds`.
    @discardableResult
    static func eventually(within seconds: Double = 5, _ condition: () throws -> Bool) rethrows -> Bool {
        let deadline = ProcessInfo.processInfo.systemUptime + seconds
        while ProcessInfo.processInfo.systemUptime < deadline {
            if try condition() { return true }
            usleep(1000)
        }
        return try condition()
    }
}

/// A socket of IPv4, for datagrams or for packets with a header of our own.
final class LabSocket {
    let descriptor: Int32

    private init(_ type: Int32, _ protocolNumber: Int32) throws {
        descriptor = socket(AF_INET, type, protocolNumber)
        if descriptor < 0 { throw QueueLab.Failure(description: "no socket") }
    }

    deinit { close(descriptor) }

    /// A UDP socket bound to 198.18.0.`host`, `port`.
    static func udp(host: UInt8, port: UInt16 = 0) throws -> LabSocket {
        let socket = try LabSocket(Int32(SOCK_DGRAM.rawValue), 0)
        let bound = withAddress(host, port) { bind(socket.descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
        if bound != 0 { throw QueueLab.Failure(description: "cannot bind 198.18.0.\(host):\(port)") }
        var timeout = timeval(tv_sec: 0, tv_usec: 300_000)
        setsockopt(socket.descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        var size: Int32 = 8 << 20
        setsockopt(socket.descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &size, socklen_t(MemoryLayout<Int32>.size))
        return socket
    }

    /// Sends `octets` over a TCP connection between two addresses of ours and returns what arrived.
    static func stream(_ octets: [UInt8], from source: UInt8, to destination: UInt8, port: UInt16) throws -> [UInt8] {
        let length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let listener = try LabSocket(Int32(SOCK_STREAM.rawValue), 0)
        let client = try LabSocket(Int32(SOCK_STREAM.rawValue), 0)
        guard withAddress(destination, port, { bind(listener.descriptor, $0, length) }) == 0,
            withAddress(source, 0, { bind(client.descriptor, $0, length) }) == 0,
            listen(listener.descriptor, 1) == 0,
            withAddress(destination, port, { connect(client.descriptor, $0, length) }) == 0
        else { throw QueueLab.Failure(description: "no connection") }
        var timeout = timeval(tv_sec: 2, tv_usec: 0)
        setsockopt(client.descriptor, SOL_SOCKET, SO_SNDTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        let accepted = accept(listener.descriptor, nil, nil)
        defer { close(accepted) }
        let descriptor = client.descriptor
        Thread.detachNewThread {
            var sent = 0
            while sent < octets.count {
                let count = octets.withUnsafeBytes { buffer in
                    write(descriptor, buffer.baseAddress.map { $0 + sent }, octets.count - sent)
                }
                if count <= 0 { break }
                sent += count
            }
            shutdown(descriptor, Int32(SHUT_WR))
        }
        setsockopt(accepted, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))
        var received: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = recv(accepted, &buffer, buffer.count, 0)
            if count <= 0 { break }
            received += buffer.prefix(count)
        }
        withExtendedLifetime(client) {}
        return received
    }

    /// A socket for whole IPv4 packets; the kernel leaves their transport checksums alone.
    static func raw() throws -> LabSocket { try LabSocket(Int32(SOCK_RAW.rawValue), Int32(IPPROTO_RAW)) }

    private static func withAddress<Result>(
        _ host: UInt8, _ port: UInt16, _ body: (UnsafePointer<sockaddr>) -> Result
    ) -> Result {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = (0xc612_0000 | UInt32(host)).bigEndian
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1, body)
        }
    }

    /// Sends `message` to another netlink socket of family NETLINK_NETFILTER (12), as the kernel would.
    static func netlink(_ message: some Collection<UInt8>, toPort port: UInt32) throws {
        let descriptor = socket(AF_NETLINK, Int32(SOCK_RAW.rawValue), 12)
        defer { close(descriptor) }
        let octets = Array(message)
        // struct sockaddr_nl: family, padding, port, groups.
        let address: [UInt32] = [UInt32(AF_NETLINK), port, 0]
        let sent = address.withUnsafeBytes { address in
            sendto(descriptor, octets, octets.count, 0, address.assumingMemoryBound(to: sockaddr.self).baseAddress, 12)
        }
        if sent < 0 { throw QueueLab.Failure(description: "cannot send to netlink port \(port)") }
    }

    @discardableResult
    func send(_ octets: [UInt8], to host: UInt8, port: UInt16 = 0) -> Bool {
        let length = socklen_t(MemoryLayout<sockaddr_in>.size)
        return Self.withAddress(host, port) { sendto(descriptor, octets, octets.count, 0, $0, length) } == octets.count
    }

    /// The next datagram; nil when none comes within 0.3 s.
    func receive() -> [UInt8]? {
        var buffer = [UInt8](repeating: 0, count: 65536)
        let length = recv(descriptor, &buffer, buffer.count, 0)
        return length < 0 ? nil : Array(buffer.prefix(length))
    }
}

/// The checksum of RFC 1071 over `octets`, continued from `sum`; without the final complement.
func labSum(_ octets: some Sequence<UInt8>, from sum: UInt32 = 0) -> UInt32 {
    var sum = sum
    var isHigh = true
    for octet in octets {
        sum &+= isHigh ? UInt32(octet) << 8 : UInt32(octet)
        isHigh.toggle()
        sum = (sum & 0xffff) + sum >> 16
    }
    return sum
}

/// An IPv4 packet with UDP, checksums complete.
func labPacket(from source: UInt8, to destination: UInt8, port: UInt16, _ data: [UInt8]) -> [UInt8] {
    let length = UInt16(8 + data.count)
    let addresses: [UInt8] = [198, 18, 0, source, 198, 18, 0, destination]
    var datagram: [UInt8] = [
        0x30, 0x39, UInt8(port >> 8), UInt8(port & 0xff), UInt8(length >> 8), UInt8(length & 0xff),
    ]
    datagram += [0, 0] + data
    let sum = ~UInt16(truncatingIfNeeded: labSum(datagram, from: labSum(addresses, from: 17 + UInt32(length))))
    datagram[6] = UInt8(sum >> 8)
    datagram[7] = UInt8(sum & 0xff)
    let total = 20 + length
    return [0x45, 0, UInt8(total >> 8), UInt8(total & 0xff), 0, 0, 0, 0, 64, 17, 0, 0] + addresses + datagram
}
