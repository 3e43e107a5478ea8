// SPDX-License-Identifier: GPL-3.0-or-later

extension Session {
    /// This session, which was decided from `base`, with what has happened to `base` meanwhile: a reply learnt, an old
    /// transit that is over. What both have changed stays as it was decided. nil when it is not the same session any more, or
    /// another host serves it: then the decision has to be made again.
    public func rebased(from base: Session, onto now: Session) -> Session? {
        guard now.id == base.id, now.key == base.key, now.binding == base.binding else { return nil }
        var rebased = self
        for tuple in Set(base.transits.keys).union(now.transits.keys)
        where now.transits[tuple] != base.transits[tuple] && transits[tuple] == base.transits[tuple] {
            rebased.transits[tuple] = now.transits[tuple]
        }
        if replies == base.replies { rebased.replies = now.replies }
        if yields == base.yields { rebased.yields = now.yields }
        return rebased
    }
}
