// SPDX-License-Identifier: GPL-3.0-or-later

import Migration
import Testing
import Wire

@Suite struct PolicyTests {
    private let root = Policy.Credentials(user: 0, group: 0)
    private let operatorsMember = Policy.Credentials(user: 1000, group: 27)

    private func endpoint(_ text: String) throws -> Endpoint { try #require(Endpoint(text)) }

    private func range(_ text: String) throws -> EndpointRange { try #require(EndpointRange(text)) }

    private func key(_ client: String = "192.0.2.9", home: String = "198.51.100.1:6379") throws -> SessionKey {
        SessionKey(client: try #require(IPAddress(client)), clientPort: nil, home: try endpoint(home))
    }

    private func redis() throws -> Service {
        Service(name: "redis", homes: [try range("198.51.100.1:6379")], hosts: [try range("198.51.100.2")])
    }

    @Test func `what no service names is not moved`() throws {
        let refusal = Policy().refusal(of: try key(), to: try endpoint("198.51.100.2:6379"), by: root)
        #expect(refusal == .home(try endpoint("198.51.100.1:6379")))
        #expect("\(try #require(refusal))".contains("198.51.100.1:6379"))
    }

    @Test func `home, host and client decide, and the refusal names the rule`() throws {
        var service = try redis()
        service.clients = [try #require(AddressPrefix("192.0.2.0/24"))]
        let policy = Policy(services: [service])
        let b = try endpoint("198.51.100.2:6379")
        #expect(policy.refusal(of: try key(), to: b, by: root) == nil)
        let other = try endpoint("198.51.100.9:6379")
        #expect(policy.refusal(of: try key(), to: other, by: root) == .host(service: "redis", host: other))
        #expect(
            "\(PolicyRefusal.host(service: "redis", host: other))"
                == "Service \"redis\": 198.51.100.9:6379 is not among its hosts.")
        let stranger = try key("203.0.113.1")
        #expect(policy.refusal(of: stranger, to: b, by: root) == .client(service: "redis", client: stranger.client))
        #expect(
            policy.refusal(of: try key(home: "198.51.100.1:6380"), to: b, by: root)
                == .home(try endpoint("198.51.100.1:6380")))
    }

    @Test func `of two services for one home, the client's is the one that counts`() throws {
        var first = try redis()
        first.clients = [try #require(AddressPrefix("203.0.113.0/24"))]
        var second = try redis()
        second.name = "rest"
        second.hosts = [try range("198.51.100.3")]
        let policy = Policy(services: [first, second])
        #expect(policy.service(of: try key())?.name == "rest")
        #expect(policy.refusal(of: try key(), to: try endpoint("198.51.100.3:6379"), by: root) == nil)
        #expect(policy.refusal(of: try key(), to: try endpoint("198.51.100.2:6379"), by: root) != nil)
        #expect(policy.service(named: "redis") == first)
    }

    @Test func `callers may, readers and others may not, and the daemon always may`() throws {
        var service = try redis()
        let b = try endpoint("198.51.100.2:6379")
        service.callers = CallerSet(users: [7], groups: [27])
        func refusal(_ credentials: Policy.Credentials?) throws -> PolicyRefusal? {
            Policy(services: [service]).refusal(of: try key(), to: b, by: credentials)
        }
        #expect(try refusal(operatorsMember) == nil)
        #expect(try refusal(Policy.Credentials(user: 7, group: 100)) == nil)
        #expect(try refusal(root) == .caller(service: "redis", user: 0))
        #expect(try refusal(nil) == nil)
        service.readers = CallerSet(users: [1000])
        #expect(try refusal(operatorsMember) == .reader(service: "redis", user: 1000))
        // The way home is for the same people.
        let policy = Policy(services: [service])
        #expect(policy.refusal(of: try key(), to: nil, by: root) == .caller(service: "redis", user: 0))
        #expect(policy.refusal(of: try key(), to: nil, by: Policy.Credentials(user: 7, group: 100)) == nil)
    }

    @Test func `a session of a forgotten service goes home for root only`() throws {
        #expect(Policy().refusal(of: try key(), to: nil, by: root) == nil)
        #expect(Policy().refusal(of: try key(), to: nil, by: nil) == nil)
        #expect(Policy().refusal(of: try key(), to: nil, by: operatorsMember) != nil)
    }

    @Test(arguments: [0.5, 1, 2.5, 10, 500])
    func `no second admits more than the rate`(rate: Double) throws {
        var service = try redis()
        service.rate = rate
        let policy = Policy(services: [service])
        let b = try endpoint("198.51.100.2:6379")
        var paces: [String: Pace] = [:]
        var admitted: [UInt64] = []
        for millisecond in 0..<UInt64(8000) {
            let now = 5_000_000_000 + millisecond * 1_000_000
            guard policy.admit(try key(), to: b, by: root, paces: &paces, at: now) == .admitted else { continue }
            admitted.append(now)
        }
        let most = max(1, Int(rate))
        let window = UInt64(Double(most) / rate * 1e9)
        for first in admitted {
            #expect(admitted.filter { $0 >= first && $0 < first + window }.count <= most)
        }
        // And no fewer.
        #expect(Double(admitted.count) >= 8 * rate - 1)
    }

    @Test(arguments: [0.5, 1, 3, 100]) func `who can wait learns when the rate has a place`(rate: Double) {
        var pace = Pace()
        var now: UInt64 = 7
        #expect(pace.place(rate: rate, at: now) == nil)
        for _ in 0..<250 {
            if let place = pace.place(rate: rate, at: now) {
                #expect(place > now)
                // Not a nanosecond earlier.
                var early = pace
                let isEarly = early.take(rate: rate, at: place - 1)
                #expect(!isEarly)
                now = place
            }
            #expect(pace.place(rate: rate, at: now) == nil)
            let isTaken = pace.take(rate: rate, at: now)
            #expect(isTaken)
            now += 1_000_000
        }
    }

    @Test func `the rate holds nobody back who goes home, and no other service`() throws {
        var service = try redis()
        service.rate = 1
        var other = Service(
            name: "web", homes: [try range("198.51.100.1:80")], hosts: [try range("198.51.100.2")])
        other.rate = 1
        let policy = Policy(services: [service, other])
        var paces: [String: Pace] = [:]
        let b = try endpoint("198.51.100.2:6379")
        #expect(policy.admit(try key(), to: b, by: root, paces: &paces, at: 1) == .admitted)
        #expect(
            policy.admit(try key(), to: b, by: root, paces: &paces, at: 2)
                == .refused(.rate(service: "redis", rate: 1, host: b)))
        #expect(policy.admit(try key(), to: nil, by: root, paces: &paces, at: 3) == .admitted)
        #expect(
            policy.admit(
                try key(home: "198.51.100.1:80"), to: try endpoint("198.51.100.2:80"), by: root, paces: &paces, at: 4)
                == .admitted)
        #expect(policy.admit(try key(), to: b, by: root, paces: &paces, at: 1_000_000_001) == .admitted)
    }

    @Test func `a refused request does not use up the rate`() throws {
        var service = try redis()
        service.rate = 1
        let policy = Policy(services: [service])
        var paces: [String: Pace] = [:]
        _ = policy.admit(try key(), to: try endpoint("198.51.100.9:6379"), by: root, paces: &paces, at: 1)
        #expect(
            policy.admit(try key(), to: try endpoint("198.51.100.2:6379"), by: root, paces: &paces, at: 2) == .admitted)
    }

    @Test(arguments: [
        "192.0.2.1", "192.0.2.0/24", "192.0.2.1:80", "192.0.2.0/24:80-90", "0.0.0.0/0:1-65535", "2001:db8::1",
        "2001:db8::/64", "[2001:db8::1]:80", "[2001:db8::/64]:80-90", "[::/0]:1-65535",
    ])
    func `an endpoint range is written as it is read`(text: String) {
        #expect(EndpointRange(text)?.description == text)
    }

    @Test(arguments: [
        "", ":80", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:90-80", "192.0.2.1:80-", "192.0.2.1:80-90-100",
        "192.0.2.1/24", "192.0.2.0/33", "192.0.2.0/-1", "192.0.2.0/", "[192.0.2.1]:80", "[2001:db8::1]",
        "2001:db8::1/64",
        "192.0.2.1:65536", "192.0.2.1:+80", "host:80",
    ])
    func `what is no endpoint range is refused`(text: String) {
        #expect(EndpointRange(text) == nil)
    }

    @Test func `a prefix holds its addresses and no others`() throws {
        let prefixes = ["192.0.2.128/25", "0.0.0.0/0", "2001:db8::/63", "2001:db8:0:0:8000::/65", "2001:db8::1"]
        let inside = [
            ["192.0.2.128", "192.0.2.255"], ["0.0.0.0", "255.255.255.255"], ["2001:db8::", "2001:db8:0:1:ffff::"],
            ["2001:db8:0:0:8000::1"], ["2001:db8::1"],
        ]
        let outside = [
            ["192.0.2.127", "192.0.3.128"], ["::"], ["2001:db8:0:2::", "192.0.2.1"], ["2001:db8::7fff:0:0:1"],
            ["2001:db8::2"],
        ]
        for (index, text) in prefixes.enumerated() {
            let prefix = try #require(AddressPrefix(text))
            for address in inside[index] { #expect(prefix.contains(try #require(IPAddress(address)))) }
            for address in outside[index] { #expect(!prefix.contains(try #require(IPAddress(address)))) }
        }
    }
}

@Suite struct StandingLifetimeTests {
    private func standing(endsAt: Double?, then: Endpoint? = nil, confirmBy: Double?) throws -> StandingLifetime {
        let key = SessionKey(
            client: try #require(IPAddress("192.0.2.9")), clientPort: nil,
            home: try #require(Endpoint("198.51.100.1:80")))
        return StandingLifetime(migration: 1, session: key, endsAt: endsAt, then: then, confirmBy: confirmBy)
    }

    @Test func `the earlier of two times comes first`() throws {
        let next = try #require(try standing(endsAt: 10, confirmBy: 20).next)
        #expect(next.at == 10 && next.end == .over)
        let other = try #require(try standing(endsAt: 30, confirmBy: 20).next)
        #expect(other.at == 20 && other.end == .unconfirmed)
        #expect(try standing(endsAt: nil, confirmBy: nil).next == nil)
        #expect(try standing(endsAt: nil, confirmBy: nil).isOver)
    }

    @Test func `a lifetime leads on where it was told to, an unconfirmed migration home`() throws {
        let d = try #require(Endpoint("198.51.100.3:80"))
        #expect(try standing(endsAt: 10, then: d, confirmBy: nil).next?.end == .onward(d))
        #expect(try standing(endsAt: 30, then: d, confirmBy: 20).next?.end.host == nil)
    }
}
