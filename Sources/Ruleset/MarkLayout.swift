// SPDX-License-Identifier: GPL-3.0-or-later

/// How our fwmarks are made up. The gateway's own mark (`RulesetOptions.mark`) has only bits of `tag`; it is on our own
/// segments, and a packet that comes back from a queue into the chain that queued it carries it together with what the
/// other bits say. It loses the mark in that chain, so that nobody else's rule sees it.
public enum MarkLayout {
    /// The bits by which a mark is known as ours.
    @inlinable public static var tag: UInt32 { 0xfff0_0000 }
    /// The kernel is to learn from this packet: what the reply to it looks like, and where to carry the next ones.
    @inlinable public static var learns: UInt32 { 0x0008_0000 }
    /// The translation changes the client's port as well.
    @inlinable public static var changesClientPort: UInt32 { 0x0004_0000 }
    /// The number of the translation that the kernel is to make; 0 for none.
    @inlinable public static var translation: UInt32 { 0x0003_ffff }
    /// What the kernel keeps of a mark to carry a connection by itself.
    @inlinable public static var remembered: UInt32 { changesClientPort | translation }
}
