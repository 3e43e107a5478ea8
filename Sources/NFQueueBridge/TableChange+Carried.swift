// SPDX-License-Identifier: GPL-3.0-or-later

internal import Ruleset
internal import Wire

extension TableChange {
    /// What the kernel has learnt of those four-tuples about whose diversion something changes, and of those that it is to
    /// forget. It is judged anew.
    func forgotten() throws(TableError) -> Set<ElementForm> {
        var forms: Set<ElementForm> = []
        for element in remove + add.map(\.element) + forget.map({ .divertConnection($0) }) {
            let (purpose, tuple): (SetName.Purpose, FourTuple)
            switch element {
            case .divert(let flow), .divertConnection(let flow): (purpose, tuple) = (.carried, flow)
            case .reply(let flow): (purpose, tuple) = (.carriedReplies, flow)
            default: continue
            }
            guard SetName.ofMarks.contains(SetName(purpose, tuple.source.address.family)) else { continue }
            do throws(MixedFamilies) {
                forms.insert(try ElementForm(tuple, in: purpose, for: element))
            } catch {
                throw .mixedFamilies(error)
            }
        }
        return forms
    }

    /// Whether a translation is no longer one: its number may come to mean something else.
    var endsTranslations: Bool {
        remove.contains {
            switch $0 {
            case .endpointAddress, .endpointPort, .clientPort: true
            default: false
            }
        }
    }
}
