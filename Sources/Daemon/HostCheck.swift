// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Glibc
internal import Wire

/// Asks a host for a TCP connection and ends it at once: does something listen there? A client that is sent to a
/// host which refuses it waits seconds, not milliseconds. Confined to the event loop's thread.
final class HostCheck {
    private let loop: EventLoop
    private var descriptor: Int32
    private var timer: UInt64?
    private var completion: ((String?) -> Void)?

    /// Starts asking. `completion` is called once, on the loop's thread, possibly before this returns: with the reason why
    /// nothing listens there, or nil.
    init(_ host: Endpoint, timeout: UInt64, loop: EventLoop, completion: @escaping (String?) -> Void) {
        self.loop = loop
        self.completion = completion
        let family = host.address.family == .ipv4 ? AF_INET : AF_INET6
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
        descriptor = socket(family, kind, 0)
        guard descriptor >= 0 else {
            finish(errno)
            return
        }
        let result = unsafe host.withSocketAddress { address, length in unsafe connect(descriptor, address, length) }
        guard result != 0, errno == EINPROGRESS else {
            finish(result == 0 ? 0 : errno)
            return
        }
        loop.watch(descriptor, writable: true) { self.answered() }
        timer = loop.schedule(at: EventLoop.now + timeout) { self.finish(ETIMEDOUT) }
    }

    private func answered() {
        var error: Int32 = 0
        var length = socklen_t(MemoryLayout<Int32>.size)
        _ = unsafe getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length)
        finish(error)
    }

    private func finish(_ error: Int32) {
        if let timer { loop.cancel(timer) }
        timer = nil
        if descriptor >= 0 { loop.forget(descriptor) }
        if error == 0 { takeLeave() } else { close() }
        let completion = completion
        self.completion = nil
        switch error {
        case 0: completion?(nil)
        case ECONNREFUSED: completion?("connection refused")
        case ETIMEDOUT: completion?("no answer")
        default: completion?(unsafe String(cString: strerror(error)))
        }
    }

    /// Ends an open connection with a FIN, which TCP repeats when it is lost: a RST that is lost would leave the host with a
    /// connection for ever. Whatever the host says first is read, because unread data turn a close into a RST.
    private func takeLeave() {
        _ = shutdown(descriptor, Int32(SHUT_WR))
        loop.watch(descriptor) {
            var octets: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
            let count = unsafe read(self.descriptor, &octets, 32)
            if count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR) { self.close() }
        }
        timer = loop.schedule(at: EventLoop.now + 5_000_000_000) { self.close() }
    }

    private func close() {
        if let timer { loop.cancel(timer) }
        timer = nil
        guard descriptor >= 0 else { return }
        loop.forget(descriptor)
        _ = Glibc.close(descriptor)
        descriptor = -1
    }
}

extension Endpoint {
    /// Calls `body` with this endpoint as a socket address.
    fileprivate func withSocketAddress<Result>(
        _ body: (UnsafePointer<sockaddr>, socklen_t) -> Result
    ) -> Result {
        switch address {
        case .v4(let address):
            var name = sockaddr_in()
            name.sin_family = sa_family_t(AF_INET)
            name.sin_port = port.bigEndian
            name.sin_addr.s_addr = address.rawValue.bigEndian
            return unsafe withUnsafePointer(to: &name) {
                unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
        case .v6:
            var name = sockaddr_in6()
            name.sin6_family = sa_family_t(AF_INET6)
            name.sin6_port = port.bigEndian
            unsafe withUnsafeMutableBytes(of: &name.sin6_addr) { unsafe $0.copyBytes(from: address.octets) }
            return unsafe withUnsafePointer(to: &name) {
                unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe body($0, socklen_t(MemoryLayout<sockaddr_in6>.size))
                }
            }
        }
    }
}
