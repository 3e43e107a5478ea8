// SPDX-License-Identifier: GPL-3.0-or-later

public import Ruleset

extension NetfilterTable {
    /// What others have left of the table.
    public enum Condition: Hashable, Sendable {
        case whole
        /// Rules are missing that a change with `TableChange.renewsEntrances` brings back.
        case entrancesChanged
        /// It is not there, or it is another one, or other rules are missing.
        case lost
    }

    /// Whether the table's rules are what this object has made or adopted. One question to the kernel, as long as nobody else has
    /// changed nf_tables.
    ///
    /// - Throws: `NetlinkError`.
    public func condition() throws(NetlinkError) -> Condition {
        let generation = try readGeneration()
        if generation == wholeGeneration { return .whole }
        guard let found = try readTable(), found.comment == ruleset.comment, number == nil || found.number == number
        else { return .lost }
        number = found.number
        let rules = try readRules()
        let changing = Set(Ruleset.chains(open: SetName.entrances.union(SetName.ofNAT)).map(\.name))
        guard ruleset.chains.allSatisfy({ changing.contains($0.name) || rules.agree(with: $0) }) else { return .lost }
        if let open = entrances?.open, !Ruleset.chains(open: open).allSatisfy(rules.agree) { return .entrancesChanged }
        wholeGeneration = generation
        return .whole
    }
}
