// SPDX-License-Identifier: GPL-3.0-or-later

/// What the transport checksum of a queued packet is worth, and so what a rewrite must do to it.
@frozen
public enum ChecksumState: UInt8, Hashable, Sendable {
    /// The checksum field covers the packet as it is: adjust it by what changed (RFC 1624).
    case complete
    /// The sender left the sum to its network card (NFQA_SKB_CSUMNOTREADY): compute it in full, since a packet that
    /// comes back from user space counts as finished.
    case pending
    /// A packet of several segments (NFQA_SKB_GSO): the kernel computes each segment's sum anew from the addresses in
    /// the header when it cuts the packet (`tcp4_gso_segment`), so the field need not be touched, unless somebody
    /// checks it on the way there.
    case segmented
}
