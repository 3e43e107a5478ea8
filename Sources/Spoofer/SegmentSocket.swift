// SPDX-License-Identifier: GPL-3.0-or-later

internal import Glibc
public import Wire

/// Sends segments in anybody's name: one raw socket per family, headers included (raw(7), IPPROTO_RAW implies
/// IP_HDRINCL).
///
/// Neither a bind nor `ip_nonlocal_bind` is needed, and reverse path filters do not look at what leaves. The mark, set
/// before the routing decision, is what the ruleset knows our segments by, and what `ip rule … fwmark` can route them
/// by: the forged source plays no part in routing. Without IPv6 in the kernel only IPv4 can be sent.
public struct SegmentSocket: ~Copyable {
    private let ipv4: Int32
    /// -1 when the kernel has no IPv6.
    private let ipv6: Int32

    /// - Parameter mark: the firewall mark (SO_MARK) of every segment.
    /// - Throws: `SpoofError`, when CAP_NET_RAW is missing above all.
    public init(mark: UInt32) throws(SpoofError) {
        let ipv4 = try Self.open(.ipv4, mark: mark)
        do {
            ipv6 = try Self.open(.ipv6, mark: mark)
        } catch let error where error.errno == EAFNOSUPPORT {
            ipv6 = -1
        } catch {
            close(ipv4)
            throw error
        }
        self.ipv4 = ipv4
    }

    deinit {
        close(ipv4)
        if ipv6 >= 0 { close(ipv6) }
    }

    private static func open(_ family: AddressFamily, mark: UInt32) throws(SpoofError) -> Int32 {
        let domain = family == .ipv4 ? AF_INET : AF_INET6
        let type = Int32(SOCK_RAW.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue)
        let descriptor = socket(domain, type, Int32(IPPROTO_RAW))
        guard descriptor >= 0 else { throw SpoofError(.open(family), errno: errno) }
        var mark = mark
        let result = unsafe setsockopt(
            descriptor, SOL_SOCKET, SO_MARK, &mark, socklen_t(MemoryLayout<UInt32>.size))
        guard result == 0 else {
            let number = errno
            close(descriptor)
            throw SpoofError(.configure(family), errno: number)
        }
        return descriptor
    }

    /// Sends one segment. That the kernel takes it does not say that it arrives: a dead neighbour is silent.
    public func send(_ segment: TCPSegment) throws(SpoofError) {
        // The kernel fills in an identification of 0 itself (`raw_send_hdrinc`).
        let octets = segment.encode(identification: 0)
        guard !octets.isEmpty else { throw SpoofError(.send, tuple: segment.tuple, errno: EINVAL) }
        let destination = segment.tuple.destination.address
        let sent: Int
        switch destination {
        case .v4(let address):
            var name = sockaddr_in()
            name.sin_family = sa_family_t(AF_INET)
            name.sin_addr.s_addr = address.rawValue.bigEndian
            sent = unsafe withUnsafeBytes(of: &name) { unsafe Self.send(octets, to: $0, on: ipv4) }
        case .v6(let address):
            guard ipv6 >= 0 else { throw SpoofError(.open(.ipv6), tuple: segment.tuple, errno: EAFNOSUPPORT) }
            var name = sockaddr_in6()
            name.sin6_family = sa_family_t(AF_INET6)
            // The port must be 0 here: it would be taken for a protocol number (`rawv6_sendmsg`).
            unsafe withUnsafeMutableBytes(of: &name.sin6_addr) { octets in
                unsafe octets.storeBytes(of: address.high.bigEndian, toByteOffset: 0, as: UInt64.self)
                unsafe octets.storeBytes(of: address.low.bigEndian, toByteOffset: 8, as: UInt64.self)
            }
            sent = unsafe withUnsafeBytes(of: &name) { unsafe Self.send(octets, to: $0, on: ipv6) }
        }
        guard sent == octets.count else {
            throw SpoofError(.send, tuple: segment.tuple, errno: sent < 0 ? errno : EMSGSIZE)
        }
    }

    /// Sends many segments, each whatever became of the others.
    ///
    /// - Returns: what went wrong, in the order of the segments; empty when all were taken.
    public func send(_ segments: [TCPSegment]) -> [SpoofError] {
        var errors: [SpoofError] = []
        for segment in segments {
            do {
                try send(segment)
            } catch {
                errors.append(error)
            }
        }
        return errors
    }

    private static func send(_ octets: [UInt8], to name: UnsafeRawBufferPointer, on descriptor: Int32) -> Int {
        while true {
            let sent = unsafe octets.withUnsafeBytes { payload in
                unsafe sendto(
                    descriptor, payload.baseAddress, payload.count, 0,
                    name.baseAddress?.assumingMemoryBound(to: sockaddr.self), socklen_t(name.count))
            }
            if sent >= 0 || errno != EINTR { return sent }
        }
    }
}
