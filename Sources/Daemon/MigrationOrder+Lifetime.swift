// SPDX-License-Identifier: GPL-3.0-or-later

package import ControlInterface
package import Migration
internal import Wire

extension RequestedLifetime {
    /// The longest time that a migration may be given, in seconds: a year.
    private static let longest: Double = 31_536_000

    /// Reads when a migration is to end by itself; nil when the order says nothing of it.
    package init?(_ order: MigrationOrder, of request: MigrationRequest) throws(MalformedOrder) {
        if order.lifetime == nil, order.then != nil {
            throw MalformedOrder("Where a session goes then needs a time: give --for with --then.")
        }
        guard order.lifetime != nil || order.confirmWithin != nil else { return nil }
        guard let to = request.to else {
            throw MalformedOrder("A migration home does not end by itself: leave --for and --confirm-within out.")
        }
        for (seconds, option) in [(order.lifetime, "--for"), (order.confirmWithin, "--confirm-within")] {
            guard let seconds else { continue }
            guard seconds >= 1, seconds <= Self.longest else {
                throw MalformedOrder("\(option) takes a time from one second to one year.")
            }
        }
        var then: Endpoint?
        if let text = order.then, text != "home" {
            var onward = order
            (onward.to, onward.lifetime, onward.then, onward.confirmWithin) = (text, nil, nil, nil)
            do {
                then = try MigrationRequest(onward, defaultDatapath: request.datapath, checksHost: false).to
            } catch {
                throw MalformedOrder(
                    "\"\(text)\" is not a host for this session: write 192.0.2.3 or 192.0.2.3:80 for --then.")
            }
            if then == to {
                throw MalformedOrder("--then names the to-host itself: name another, or leave it out for home.")
            }
        }
        self.init(seconds: order.lifetime, then: then, confirmWithin: order.confirmWithin)
    }
}
