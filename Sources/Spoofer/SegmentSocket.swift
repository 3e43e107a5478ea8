// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
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

    /// Sends segments, each whatever becomes of the others. That the kernel takes one does not say that it arrives: a dead
    /// neighbour is silent.
    ///
    /// - Returns: what went wrong; empty when all were taken.
    public func send(_ segments: [TCPSegment]) -> [SpoofError] {
        if segments.isEmpty { return [] }
        return AddressFamily.allCases.flatMap { family in
            send(segments.filter { $0.tuple.destination.address.family == family }, family)
        }
    }

    private func send(_ segments: [TCPSegment], _ family: AddressFamily) -> [SpoofError] {
        if segments.isEmpty { return [] }
        let descriptor = family == .ipv4 ? ipv4 : ipv6
        guard descriptor >= 0 else {
            return segments.map { SpoofError(.open(family), tuple: $0.tuple, errno: EAFNOSUPPORT) }
        }
        var errors: [SpoofError] = []
        var tuples: [FourTuple] = []
        var octets: [UInt8] = []
        var lengths: [UInt32] = []
        octets.reserveCapacity(segments.count * 64)
        for segment in segments {
            // The kernel fills in an identification of 0 itself (`raw_send_hdrinc`).
            let packet = segment.encode(identification: 0)
            guard !packet.isEmpty else {
                errors.append(SpoofError(.send, tuple: segment.tuple, errno: EINVAL))
                continue
            }
            octets += packet
            lengths.append(UInt32(packet.count))
            tuples.append(segment.tuple)
        }
        var (next, offset) = (0, 0)
        while next < lengths.count {
            let taken = unsafe octets.withUnsafeBufferPointer { octets in
                unsafe lengths.withUnsafeBufferPointer { lengths in
                    unsafe Int(
                        nfqmig_send_packets(
                            descriptor, family == .ipv4 ? AF_INET : AF_INET6,
                            octets.baseAddress.map { unsafe $0 + offset },
                            lengths.baseAddress.map { unsafe $0 + next }, UInt32(lengths.count - next)))
                }
            }
            if taken <= 0 { errors.append(SpoofError(.send, tuple: tuples[next], errno: Int32(-taken))) }
            for _ in 0..<max(taken, 1) {
                offset += Int(lengths[next])
                next += 1
            }
        }
        return errors
    }
}
