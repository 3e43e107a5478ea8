// SPDX-License-Identifier: GPL-3.0-or-later

internal import Foundation
internal import Glibc
internal import Migration
internal import TOMLKit
internal import Wire

/// One table of a list (`[[service]]`, `[[hook]]`, `[[webhook]]`) while it is read. Mistakes are named with the table and the key.
struct ConfigurationTable {
    let path: String
    /// How errors call it: `service "redis"`, or `[[hook]] 2` for want of a name.
    var title: String
    private let table: TOMLTable

    /// The tables of a list. Throws when it is something else.
    static func list(_ key: String, _ value: TOMLValue, path: String) throws(ConfigurationError) -> [ConfigurationTable]
    {
        guard let array = value.array else {
            throw ConfigurationError(path: path, reason: "\(key) must be a list of tables: write [[\(key)]]")
        }
        var tables: [ConfigurationTable] = []
        for element in array {
            guard let table = element.table else {
                throw ConfigurationError(path: path, reason: "\(key) must be a list of tables: write [[\(key)]]")
            }
            tables.append(ConfigurationTable(path: path, title: "[[\(key)]] \(tables.count + 1)", table: table))
        }
        return tables
    }

    private init(path: String, title: String, table: TOMLTable) {
        self.path = path
        self.title = title
        self.table = table
    }

    func wrong(_ key: String, _ wanted: String) -> ConfigurationError {
        ConfigurationError(path: path, reason: "\(title): \(key) must be \(wanted)")
    }

    /// Throws when there is a key that is none of these.
    func allow(_ keys: [String]) throws(ConfigurationError) {
        for key in table.keys where !keys.contains(key) {
            throw ConfigurationError(
                path: path, reason: "\(title): \(key) is not a setting; it knows \(keys.joined(separator: ", "))")
        }
    }

    func has(_ key: String) -> Bool { table[key] != nil }

    func text(_ key: String) throws(ConfigurationError) -> String? {
        guard let value = table[key] else { return nil }
        guard let text = value.string, !text.isEmpty else { throw wrong(key, "a text") }
        return text
    }

    func texts(_ key: String) throws(ConfigurationError) -> [String]? {
        guard let value = table[key] else { return nil }
        guard let array = value.array else { throw wrong(key, "a list of texts") }
        var texts: [String] = []
        for element in array {
            guard let text = element.string else { throw wrong(key, "a list of texts") }
            texts.append(text)
        }
        return texts
    }

    /// A whole or broken number.
    func number(_ key: String, _ range: ClosedRange<Double>) throws(ConfigurationError) -> Double? {
        guard let value = table[key] else { return nil }
        guard let number = value.int.map(Double.init) ?? value.double, range.contains(number) else {
            throw wrong(key, "a number from \(range.lowerBound.plainText) to \(Int(range.upperBound))")
        }
        return number
    }

    /// Users by name or number, groups by `@` and name or number.
    func callers(_ key: String) throws(ConfigurationError) -> CallerSet? {
        guard let value = table[key] else { return nil }
        guard let array = value.array else { throw wrong(key, "a list of users, and groups as \"@group\"") }
        var callers = CallerSet()
        for element in array {
            if let number = element.int, let user = UInt32(exactly: number) {
                callers.users.insert(user)
                continue
            }
            guard let name = element.string, !name.isEmpty, name != "@" else {
                throw wrong(key, "a list of users, and groups as \"@group\"")
            }
            guard Accounts.add(name, to: &callers) else {
                let kind = name.hasPrefix("@") ? "group" : "user"
                throw ConfigurationError(
                    path: path, reason: "\(title): \(key) names \"\(name)\", a \(kind) that this machine does not have")
            }
        }
        return callers
    }
}

extension Configuration {
    /// Reads the tables `[[service]]`.
    static func services(_ value: TOMLValue, path: String) throws(ConfigurationError) -> [Service] {
        var services: [Service] = []
        for var table in try ConfigurationTable.list("service", value, path: path) {
            guard let name = try table.text("name") else { throw table.wrong("name", "given") }
            table.title = "service \"\(name)\""
            try table.allow(["name", "homes", "hosts", "clients", "rate", "callers", "readers"])
            if services.contains(where: { $0.name == name }) {
                throw ConfigurationError(path: path, reason: "\(table.title) is there twice; give each its own name")
            }
            guard let homes = try ranges("homes", of: table), !homes.isEmpty else {
                throw table.wrong("homes", "a list of endpoints such as \"198.51.100.1:6379\"")
            }
            if let open = homes.first(where: { $0.ports == nil }) {
                throw ConfigurationError(
                    path: path,
                    reason:
                        "\(table.title): homes names \(open) without a port; write \(open.example), or 1-65535 for all")
            }
            guard let hosts = try ranges("hosts", of: table) else {
                throw table.wrong("hosts", "a list of addresses such as \"198.51.100.2\", empty for home only")
            }
            var service = Service(name: name, homes: homes, hosts: hosts)
            if let texts = try table.texts("clients") {
                service.clients = []
                for text in texts {
                    guard let prefix = AddressPrefix(text) else {
                        throw ConfigurationError(
                            path: path,
                            reason:
                                "\(table.title): clients names \"\(text)\", which is not a prefix; write 192.0.2.0/24, "
                                + "with nothing set behind the prefix")
                    }
                    service.clients.append(prefix)
                }
            }
            service.rate = try table.number("rate", 0.001...1_000_000)
            service.callers = try table.callers("callers")
            service.readers = try table.callers("readers") ?? CallerSet()
            services.append(service)
        }
        return services
    }

    private static func ranges(
        _ key: String, of table: ConfigurationTable
    ) throws(ConfigurationError) -> [EndpointRange]? {
        guard let texts = try table.texts(key) else { return nil }
        var ranges: [EndpointRange] = []
        for text in texts {
            guard let range = EndpointRange(text) else {
                throw ConfigurationError(
                    path: table.path,
                    reason:
                        "\(table.title): \(key) names \"\(text)\", which is neither an endpoint nor a prefix; write "
                        + "198.51.100.1:6379, 198.51.100.0/24:6379-6400 or [2001:db8::1]:6379")
            }
            ranges.append(range)
        }
        return ranges
    }

    /// Reads the tables `[[hook]]`.
    static func hooks(_ value: TOMLValue, path: String) throws(ConfigurationError) -> [Hook] {
        var hooks: [Hook] = []
        for table in try ConfigurationTable.list("hook", value, path: path) {
            try table.allow(["on", "service", "run", "post", "timeout"])
            guard let point = try table.text("on").flatMap({ Hook.Point(rawValue: $0) }) else {
                throw table.wrong("on", Hook.Point.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: " or "))
            }
            let timeout = try table.number("timeout", 0.1...3600) ?? 10
            let action: Hook.Action
            switch (try table.texts("run"), try table.text("post")) {
            case (let words?, nil):
                guard let program = words.first, program.hasPrefix("/"), !words.contains(where: { $0.contains("\0") })
                else { throw table.wrong("run", "a list that begins with a program's absolute path") }
                action = .program(words)
            case (nil, let address?):
                guard let delivery = Delivery(address, timeout: timeout) else {
                    throw table.wrong("post", "an address that begins with http:// or https://")
                }
                action = .post(delivery)
            default:
                throw ConfigurationError(
                    path: path, reason: "\(table.title) needs either run (a program) or post (a web address)")
            }
            hooks.append(Hook(point: point, service: try table.text("service"), action: action, timeout: timeout))
        }
        return hooks
    }

    /// What can only be said when the whole file is read.
    func checkReferences(path: String) throws(ConfigurationError) {
        for (index, hook) in hooks.enumerated() {
            guard let service = hook.service, policy.service(named: service) == nil else { continue }
            throw ConfigurationError(
                path: path,
                reason:
                    "[[hook]] \(index + 1): service \"\(service)\" is not configured; add a [[service]] of that name")
        }
        for webhook in webhooks {
            guard let service = webhook.filter.service, policy.service(named: service) == nil else { continue }
            throw ConfigurationError(
                path: path,
                reason:
                    "webhook \"\(webhook.name)\": service \"\(service)\" is not configured; add a [[service]] of that name"
            )
        }
    }

    /// What `check` has to say about policy and hooks.
    var policyFindings: [Finding] {
        var findings: [Finding] = []
        if policy.services.isEmpty {
            findings.append(
                Finding(isFatal: false, text: "No [[service]] is configured, so every migration is refused: name one."))
        }
        for service in policy.services {
            for home in service.homes
            where !service.hosts.contains(where: { $0.prefix.address.family == home.prefix.address.family }) {
                findings.append(
                    Finding(
                        isFatal: false,
                        text: "service \"\(service.name)\": no host is of the address family of its home \(home)."))
            }
        }
        for hook in hooks {
            guard case .program(let words) = hook.action, let program = words.first else { continue }
            if unsafe access(program, X_OK) != 0 {
                findings.append(
                    Finding(isFatal: true, text: "[[hook]] on = \"\(hook.point.rawValue)\": \(program) cannot be run."))
            }
        }
        return findings
    }
}

extension EndpointRange {
    /// The same with a port, for those who have forgotten it.
    fileprivate var example: String {
        "\(EndpointRange(prefix: prefix, ports: 80...80))"
    }
}

/// The machine's users and groups (getpwnam(3), getgrnam(3)), read when the configuration is.
private enum Accounts {
    /// Adds a user, or the members of an `@group`; false when there is none of that name.
    static func add(_ name: String, to callers: inout CallerSet) -> Bool {
        guard name.hasPrefix("@") else {
            if let number = UInt32(name) {
                callers.users.insert(number)
                return true
            }
            guard let entry = unsafe getpwnam(name) else { return false }
            callers.users.insert(unsafe entry.pointee.pw_uid)
            return true
        }
        let name = String(name.dropFirst())
        if let number = UInt32(name) {
            callers.groups.insert(number)
            return true
        }
        guard let entry = unsafe getgrnam(name) else { return false }
        callers.groups.insert(unsafe entry.pointee.gr_gid)
        // Those who have it beside their own group: the kernel tells a caller's effective group only.
        var members: [String] = []
        var next = unsafe entry.pointee.gr_mem
        while let member = unsafe next?.pointee {
            members.append(unsafe String(cString: member))
            unsafe next = unsafe next?.advanced(by: 1)
        }
        for member in members {
            if let entry = unsafe getpwnam(member) { callers.users.insert(unsafe entry.pointee.pw_uid) }
        }
        return true
    }
}
