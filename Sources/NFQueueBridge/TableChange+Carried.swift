// SPDX-License-Identifier: GPL-3.0-or-later

internal import Ruleset
internal import Wire

extension TableChange {
    /// What the kernel has learnt of those four-tuples about whose diversion something changes. It is judged anew.
    func forgotten() throws(TableError) -> Set<ElementForm> {
        var forms: Set<ElementForm> = []
        for element in remove + add.map(\.element) {
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

    /// Whether a home, a host or a translation is no longer one: SYNs of its connections may pass unseen from now on, or a
    /// number come to mean something else.
    var endsTranslations: Bool {
        remove.contains {
            switch $0 {
            case .icmpHome, .answering, .endpointAddress, .endpointPort, .clientPort: true
            default: false
            }
        }
    }
}
