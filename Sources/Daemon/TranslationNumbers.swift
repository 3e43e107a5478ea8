// SPDX-License-Identifier: GPL-3.0-or-later

package import Rewriter
package import Ruleset
internal import Wire

/// The numbers by which the kernel knows translations. There is one for each endpoint that sessions are translated to, not
/// one for each session.
package struct TranslationNumbers {
    package private(set) var marks: [Translation: UInt32] = [:]
    /// Numbers from here on have never been given out.
    private var next: UInt32 = 1
    /// Numbers below `next` that mean nothing at present.
    private var free: [UInt32] = []
    private let limit: UInt32

    /// `limit`: the greatest number.
    package init(limit: UInt32 = MarkLayout.translation) { self.limit = limit }

    /// Takes over the numbers that the kernel's table has for `wanted` translations: what is on its way keeps its meaning. A
    /// number that the table has for something else is not given out: until the table is put right, the kernel would write
    /// that.
    package mutating func adopt(_ elements: some Sequence<TableElement>, for wanted: Set<Translation>) {
        var addresses: [UInt32: IPAddress] = [:]
        var ports: [UInt64: UInt16] = [:]
        var clientPorts: [UInt64: UInt16] = [:]
        func key(_ number: UInt32, _ family: AddressFamily) -> UInt64 { UInt64(family.rawValue) << 32 | UInt64(number) }
        var numbers: Set<UInt32> = []
        for element in elements {
            switch element {
            case .endpointAddress(let number, let address):
                addresses[number] = address
                numbers.insert(number)
            case .endpointPort(let number, let port, let family):
                ports[key(number, family)] = port
                numbers.insert(number)
            case .clientPort(let number, let port, let family):
                clientPorts[key(number, family)] = port
                numbers.insert(number)
            default: break
            }
        }
        for (number, address) in addresses where number > 0 && number <= limit {
            guard let port = ports[key(number, address.family)] else { continue }
            let translation = Translation(
                endpoint: Endpoint(address: address, port: port),
                clientPort: clientPorts[key(number, address.family)] ?? 0)
            guard wanted.contains(translation), marks[translation] == nil else { continue }
            marks[translation] = Self.mark(number, translation)
        }
        next = min(numbers.max() ?? 0, limit) + 1
        free = (1..<next).filter { !numbers.contains($0) }
    }

    /// Numbers what has none yet, and says what that was.
    ///
    /// - Throws: `TranslationsExhausted`; then nothing was numbered.
    package mutating func number(
        _ translations: some Sequence<Translation>
    ) throws(TranslationsExhausted) -> [Translation] {
        var numbered: [Translation] = []
        for translation in translations where marks[translation] == nil {
            guard let number = free.popLast() ?? (next <= limit ? next : nil) else {
                forget(numbered)
                throw TranslationsExhausted(translation: translation, limit: limit)
            }
            if number == next { next += 1 }
            marks[translation] = Self.mark(number, translation)
            numbered.append(translation)
        }
        return numbered
    }

    /// Takes back the numbers of translations that no packet can be on its way with.
    package mutating func forget(_ translations: some Sequence<Translation>) {
        for translation in translations {
            guard let mark = marks.removeValue(forKey: translation) else { continue }
            free.append(mark & MarkLayout.translation)
        }
    }

    /// What the kernel's table needs for a translation that has a number.
    package func elements(of translation: Translation) -> [TableElement] {
        guard let mark = marks[translation] else { return [] }
        let (number, endpoint) = (mark & MarkLayout.translation, translation.endpoint)
        let family = endpoint.address.family
        var elements: [TableElement] = [
            .endpointAddress(number: number, endpoint.address), .endpointPort(number: number, endpoint.port, family),
        ]
        if translation.clientPort != 0 {
            elements.append(.clientPort(number: number, translation.clientPort, family))
        }
        return elements
    }

    private static func mark(_ number: UInt32, _ translation: Translation) -> UInt32 {
        translation.clientPort == 0 ? number : number | MarkLayout.changesClientPort
    }
}

/// There is no number left for another translation.
package struct TranslationsExhausted: Error, CustomStringConvertible {
    package let translation: Translation
    package let limit: UInt32

    package var description: String {
        "\(translation.endpoint) cannot be translated to: sessions are on \(limit) endpoints already; end some of them, or set "
            + "treatment = \"rewrite\" and restart the daemon."
    }
}
