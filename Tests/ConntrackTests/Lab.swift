// SPDX-License-Identifier: GPL-3.0-or-later

import CLinuxShims
import Foundation
import Glibc
import Wire

/// Three network namespaces with real kernels' TCP in them: client (198.18.1.2, 2001:db8:1::2) – gateway – server
/// (198.18.2.2, 2001:db8:2::2). Names carry the process's number, so labs do not meet.
final class Lab {
    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    enum Host: String, CaseIterable { case client = "c", gateway = "g", server = "s" }

    private static let counter = Counter()
    private let prefix: String

    /// Why this machine cannot have a lab; nil when it can.
    static let obstacle: String? = {
        if getuid() != 0 { return "needs root for network namespaces" }
        for tool in ["ip", "nft"] where (try? shell("command -v \(tool)")) == nil { return "needs \(tool)" }
        let name = "nfqmig-\(getpid())-\(String(reflecting: Lab.self).prefix(1))"
        return (try? shell("ip netns add \(name) && ip netns del \(name)")) == nil
            ? "network namespaces cannot be made here" : nil
    }()

    init() throws {
        // Two test modules may run in one process.
        prefix = "nfqmig-\(getpid())-\(String(reflecting: Lab.self).prefix(1))\(Self.counter.next())-"
        for host in Host.allCases {
            try Self.shell("ip netns add \(name(host)) && ip -n \(name(host)) link set lo up")
            // Without duplicate address detection, IPv6 works from the first packet on.
            try run(host, "sysctl -qw net.ipv6.conf.default.dad_transmits=0")
        }
        try run(.gateway, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for (host, net) in [(Host.client, 1), (.server, 2)] {
            let (inner, outer) = ("ip -n \(name(host))", "ip -n \(name(.gateway))")
            try Self.shell(
                """
                set -e
                \(outer) link add to-\(host.rawValue) type veth peer name eth0 netns \(name(host))
                \(outer) addr add 198.18.\(net).1/24 dev to-\(host.rawValue)
                \(outer) -6 addr add 2001:db8:\(net)::1/64 dev to-\(host.rawValue) nodad
                \(outer) link set to-\(host.rawValue) up
                \(inner) addr add 198.18.\(net).2/24 dev eth0
                \(inner) -6 addr add 2001:db8:\(net)::2/64 dev eth0 nodad
                \(inner) link set eth0 up
                \(inner) route add default via 198.18.\(net).1
                \(inner) -6 route add default via 2001:db8:\(net)::1
                """)
        }
    }

    deinit {
        for host in Host.allCases { _ = try? Self.shell("ip netns del \(name(host))") }
    }

    func name(_ host: Host) -> String { prefix + host.rawValue }

    static func address(_ host: Host, _ family: AddressFamily) -> IPAddress {
        let net: UInt32 = host == .client ? 1 : 2
        return family == .ipv4
            ? .v4(IPv4Address(rawValue: 0xc612_0002 | net << 8))
            : .v6(IPv6Address(high: 0x2001_0db8_0000_0000 | UInt64(net) << 16, low: 2))
    }

    /// Runs a command line in a host's namespace.
    @discardableResult
    func run(_ host: Host, _ command: String) throws -> String {
        try Self.shell("ip netns exec \(name(host)) sh -c '\(command)'")
    }

    /// Loads nft commands, written in one line or many, in a host's namespace.
    func nft(_ host: Host, _ rules: String) throws {
        let rules = rules.replacingOccurrences(of: "{", with: "{\n").replacingOccurrences(of: "}", with: "\n}\n")
        try Self.shell("ip netns exec \(name(host)) nft -f - <<'NFT'\n\(rules)\nNFT")
    }

    @discardableResult
    static func shell(_ script: String) throws -> String {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/sh")
        process.arguments = ["-c", script]
        let (output, errors) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        let complaint = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw Failure(description: "\(script): \(complaint)") }
        return text
    }

    /// Runs `body` on a thread of its own in a host's namespace. Sockets that it opens stay there.
    func inside<Result>(_ host: Host, _ body: @escaping () throws -> Result) throws -> Result {
        let path = "/run/netns/\(name(host))"
        let done = DispatchSemaphore(value: 0)
        nonisolated(unsafe) var result: Swift.Result<Result, any Error>?
        nonisolated(unsafe) let body = body
        Thread.detachNewThread {
            let descriptor = open(path, O_RDONLY | O_CLOEXEC)
            let status = nfqmig_enter_network_namespace(descriptor)
            close(descriptor)
            result = status == 0 ? .init(catching: body) : .failure(Failure(description: "setns \(path): \(status)"))
            done.signal()
        }
        done.wait()
        return try result?.get() ?? { throw Failure(description: "no result") }()
    }
}

/// Counts up, from any thread.
final class Counter: @unchecked Sendable {
    private let lock = NSLock()
    private var value = 0

    func next() -> Int {
        lock.withLock {
            value += 1
            return value
        }
    }
}

/// A TCP socket in a lab.
final class TCPSocket {
    let descriptor: Int32

    init(_ descriptor: Int32) throws {
        guard descriptor >= 0 else { throw Lab.Failure(description: String(cString: strerror(errno))) }
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    static func listen(
        _ lab: Lab, _ host: Lab.Host, _ endpoint: Endpoint, receiveBuffer: Int32? = nil
    ) throws -> TCPSocket {
        try lab.inside(host) {
            let socket = try TCPSocket(make(endpoint))
            if let receiveBuffer { socket.set(SOL_SOCKET, SO_RCVBUF, receiveBuffer) }
            try check(withName(endpoint) { bind(socket.descriptor, $0, $1) }, "bind")
            try check(Glibc.listen(socket.descriptor, 16), "listen")
            return socket
        }
    }

    static func connect(
        _ lab: Lab, from source: Endpoint, to destination: Endpoint, waiting: Bool = true
    ) throws -> TCPSocket {
        try lab.inside(.client) {
            let socket = try TCPSocket(make(source))
            try check(withName(source) { bind(socket.descriptor, $0, $1) }, "bind")
            if !waiting { _ = fcntl(socket.descriptor, F_SETFL, O_NONBLOCK) }
            let status = withName(destination) { Glibc.connect(socket.descriptor, $0, $1) }
            if waiting { try check(status, "connect") }
            return socket
        }
    }

    func accept() throws -> TCPSocket { try TCPSocket(Glibc.accept(descriptor, nil, nil)) }

    func write(_ count: Int) -> Int {
        send(descriptor, [UInt8](repeating: 65, count: count), count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
    }

    func read(_ count: Int) -> Int {
        var octets = [UInt8](repeating: 0, count: count)
        return recv(descriptor, &octets, count, Int32(MSG_DONTWAIT))
    }

    func set(_ level: Int32, _ name: Int32, _ value: Int32) {
        var value = value
        setsockopt(descriptor, level, name, &value, 4)
    }

    /// TCP_INFO's first octet: 1 ESTABLISHED, 2 SYN_SENT, 4 FIN_WAIT1, 5 FIN_WAIT2, 7 CLOSE, 8 CLOSE_WAIT …
    var state: UInt8 {
        var information = [UInt8](repeating: 0, count: 8)
        var length: socklen_t = 8
        return getsockopt(descriptor, Int32(IPPROTO_TCP), TCP_INFO, &information, &length) == 0 ? information[0] : 255
    }

    private static func make(_ endpoint: Endpoint) -> Int32 {
        let domain = endpoint.address.family == .ipv4 ? AF_INET : AF_INET6
        let descriptor = socket(domain, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        var yes: Int32 = 1
        setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, 4)
        return descriptor
    }

    private static func check(_ status: Int32, _ what: String) throws {
        if status < 0 { throw Lab.Failure(description: "\(what): \(String(cString: strerror(errno)))") }
    }

    private static func withName(_ endpoint: Endpoint, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
        var octets: [UInt8]
        let port = [UInt8(endpoint.port >> 8), UInt8(endpoint.port & 0xff)]
        switch endpoint.address {
        case .v4: octets = [UInt8(AF_INET), 0] + port + endpoint.address.octets + [UInt8](repeating: 0, count: 8)
        case .v6: octets = [UInt8(AF_INET6), 0] + port + [0, 0, 0, 0] + endpoint.address.octets + [0, 0, 0, 0]
        }
        return octets.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return -1 }
            return body(base.assumingMemoryBound(to: sockaddr.self), socklen_t(buffer.count))
        }
    }
}
