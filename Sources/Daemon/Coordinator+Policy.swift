// SPDX-License-Identifier: GPL-3.0-or-later

internal import ControlInterface
internal import Logging
internal import Migration

extension Coordinator {
    /// What the policy says to a request of this caller.
    func admission(of request: MigrationRequest, caller: Caller) -> Admission {
        // Whichever port is chosen, it has to be allowed.
        for host in request.hosts.dropFirst() {
            if let refusal = policy.refusal(of: request.session, to: host, by: caller.credentials) {
                return .refused(refusal)
            }
        }
        return policy.admit(
            request.session, to: request.to, by: caller.credentials, paces: &paces, at: EventLoop.now)
    }

    /// Takes policy, hooks and webhooks from a configuration that was read anew, and goes on in the audit log that has the name now.
    /// Whatever else has changed in it needs a new start, and is named.
    func reload(_ fresh: Configuration) {
        audit.reopen()
        policy = fresh.policy
        hooks = fresh.hooks
        setWebhooks(fresh.webhooks)
        let names = Set(policy.services.map(\.name))
        paces = paces.filter { names.contains($0.key) }
        var same = fresh
        same.policy = configuration.policy
        same.hooks = configuration.hooks
        same.webhooks = configuration.webhooks
        if same != configuration {
            logger.warning(
                "only [[service]], [[hook]] and [[webhook]] are taken from the file now; other settings wait for a restart"
            )
        }
        logger.notice(
            "configuration reloaded: \(policy.services.count) services, \(hooks.count) hooks, \(webhooks.count) webhooks"
        )
        if policy.services.isEmpty { warnOfEmptyPolicy() }
    }

    /// Keeps policy, hooks and webhooks as they are, because the file cannot be used.
    func refuseReload(_ reason: String) {
        audit.reopen()
        logger.error("policy, hooks and webhooks stay as they were: \(reason)")
    }

    func warnOfEmptyPolicy() {
        logger.warning("no [[service]] is configured: every migration is refused")
    }
}

extension Caller {
    /// nil for the daemon itself, whom no rule on callers concerns.
    var credentials: Policy.Credentials? {
        self == .daemon ? nil : Policy.Credentials(user: user, group: group)
    }
}
