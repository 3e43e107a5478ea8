// SPDX-License-Identifier: GPL-3.0-or-later

internal import CLinuxShims
internal import Foundation

/// One thing that `nfqmigd check` has found.
public struct Finding: Hashable, Sendable, CustomStringConvertible {
    /// Whether the daemon cannot work until it is mended.
    public var isFatal: Bool
    public var text: String

    public var description: String { (isFatal ? "error: " : "note: ") + text }
}

extension Daemon {
    /// What stands in the way on this machine. Reads only.
    public static func check(_ configuration: Configuration) -> [Finding] {
        var findings: [Finding] = []
        for (name, number) in [("CAP_NET_ADMIN", UInt32(12)), ("CAP_NET_RAW", UInt32(13))]
        where nfqmig_has_capability(number) != 1 {
            findings.append(Finding(isFatal: true, text: MissingCapability(name: name).description))
        }
        func sysctl(_ name: String) -> String? {
            (try? String(contentsOfFile: "/proc/sys/" + name, encoding: .utf8))?
                .trimmingCharacters(in: .whitespacesAndNewlines)
        }
        if sysctl("net/ipv4/ip_forward") == "0" && sysctl("net/ipv6/conf/all/forwarding") == "0" {
            findings.append(
                Finding(isFatal: false, text: "This machine forwards no packets: set net.ipv4.ip_forward=1."))
        }
        if sysctl("net/netfilter/nf_conntrack_max") == nil {
            findings.append(
                Finding(
                    isFatal: false,
                    text:
                        "This kernel tracks no connections yet; it will once nfqmigd runs, and knows those that begin then."
                ))
        }
        if sysctl("net/netfilter/nf_conntrack_events") == "0" {
            findings.append(
                Finding(
                    isFatal: false,
                    text: "Conntrack reports no events, so a client's return is noticed late: set "
                        + "net.netfilter.nf_conntrack_events=1."))
        }
        if sysctl("net/ipv4/fwmark_reflect") == "1" {
            findings.append(
                Finding(
                    isFatal: false, text: "net.ipv4.fwmark_reflect is 1: the kernel's own RSTs carry marks of others."))
        }
        findings += configuration.policyFindings
        if findings.isEmpty { findings.append(Finding(isFatal: false, text: "Nothing stands in the way.")) }
        return findings
    }
}
