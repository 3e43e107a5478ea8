// SPDX-License-Identifier: GPL-3.0-or-later

import Glibc
import Testing
import Wire

@Suite struct AddressTextTests {
    @Test(arguments: [
        "", "1", "1.2.3", "1.2.3.", ".1.2.3", "1..2.3", "1.2.3.4.", "1.2.3.4.5", "01.2.3.4", "1.2.3.04", "00.0.0.0",
        "256.1.1.1", "1.2.3.1000", "+1.2.3.4", "-1.2.3.4", "-0.2.3.4", "1.2.3.4 ", " 1.2.3.4", "0x1.2.3.4", "1,2,3,4",
        "1.2.3.٤", "a.b.c.d", "1.2.3.4/24", "1.2.3.4\n", "16909060",
    ])
    func `this is no IPv4 address`(_ text: String) { #expect(IPv4Address(text) == nil) }

    @Test(arguments: [
        "", ":", "::1::", ":::", "::::", "1:::2", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:", ":1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:", ":1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "1:2:3:4::5:6:7:8", "1:2:3:4:5:6:7:8::",
        "::1:2:3:4:5:6:7:8", "1:", ":1", "1::2:", ":1::2", "+1::", "-1::", "-0::", "::+0", "::-0", "12345::",
        "00001::", "g::", "::1%eth0", "[::1]", "::1/128", " ::1", "::1 ", "::\u{301}1", "::١", "::1.2.3",
        "::1.2.3.4.5", "::01.2.3.4", "::256.2.3.4", "1.2.3.4::", "::1.2.3.4:5", "1:2:3:4:5:6:7:1.2.3.4",
        "1:2:3:4:5:1.2.3.4", "1.2.3.4", "::1.2.3.4::", "0x1::", "1:2:3:4:5:6:1.2.3.4:",
    ])
    func `this is no IPv6 address`(_ text: String) { #expect(IPv6Address(text) == nil) }

    @Test(arguments: [
        ("::", "::"), ("::1", "::1"), ("1::", "1::"), ("0:0:0:0:0:0:0:0", "::"), ("2001:DB8::A", "2001:db8::a"),
        ("2001:0db8:0000:0000:0000:0000:0000:0001", "2001:db8::1"), ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
        ("1:0:0:2:3:0:0:4", "1::2:3:0:0:4"), ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
        ("::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"),
        ("1:2:3:0:5:6:7:8", "1:2:3:0:5:6:7:8"), ("1::8", "1::8"), ("::ffff:192.0.2.1", "::ffff:c000:201"),
        ("1:2:3:4:5:6:7.8.9.10", "1:2:3:4:5:6:708:90a"), ("64:ff9b::192.0.2.33", "64:ff9b::c000:221"),
    ])
    func `an IPv6 address is written as RFC 5952 has it`(_ text: String, _ canonical: String) throws {
        #expect(try #require(IPv6Address(text)).description == canonical)
    }

    @Test(arguments: 0..<400)
    func `addresses and endpoints survive their text, and libc reads the same`(_ seed: Int) throws {
        var random = SplitMix64(seed: seed)
        for family in AddressFamily.allCases {
            var endpoint = RandomPacket.endpoint(family, using: &random)
            // Zero groups are what the text is about.
            if case .v6(var address) = endpoint.address {
                for group in 0..<4 where Bool.random(using: &random) { address.high &= ~(0xffff << UInt64(16 * group)) }
                for group in 0..<4 where Bool.random(using: &random) { address.low &= ~(0xffff << UInt64(16 * group)) }
                endpoint.address = .v6(address)
            }
            #expect(IPAddress(endpoint.address.description) == endpoint.address)
            #expect(Endpoint(endpoint.description) == endpoint)
            #expect(IPAddress(octets: endpoint.address.octets) == endpoint.address)
            #expect(libc(endpoint.address.description, family) == endpoint.address.octets)
        }
    }

    @Test(arguments: 0..<400)
    func `a mangled IPv6 address is read exactly when libc reads it, and alike`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        for _ in 0..<40 {
            let alphabet = Array(":::::0123489aFg.+- ")
            var text = Array(RandomPacket.endpoint(.ipv6, using: &random).address.description)
            if Bool.random(using: &random) { text = Array("1::2:0:3.4.5.6") }
            for _ in 0..<Int.random(in: 0...4, using: &random) where !text.isEmpty {
                let place = Int.random(in: 0..<text.count, using: &random)
                let letter = alphabet.randomElement(using: &random) ?? ":"
                switch random.next() % 3 {
                case 0: text[place] = letter
                case 1: text.insert(letter, at: place)
                default: text.remove(at: place)
                }
            }
            let string = String(text)
            #expect(IPv6Address(string).map { IPAddress.v6($0).octets } == libc(string, .ipv6), "\(string)")
        }
    }

    /// The octets that inet_pton(3) reads.
    private func libc(_ text: String, _ family: AddressFamily) -> [UInt8]? {
        var octets = [UInt8](repeating: 0, count: family == .ipv4 ? 4 : 16)
        return inet_pton(family == .ipv4 ? AF_INET : AF_INET6, text, &octets) == 1 ? octets : nil
    }

    @Test(arguments: [
        "", ":", ":80", "192.0.2.1", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.1:080", "192.0.2.1:00", "192.0.2.1:+80",
        "192.0.2.1:-0", "192.0.2.1: 80", "192.0.2.1:80 ", "[192.0.2.1]:80", "2001:db8::1:80", "[2001:db8::1]",
        "[2001:db8::1]:",
        "[2001:db8::1:80", "2001:db8::1]:80", "[[2001:db8::1]]:80", "[]:80", "[:80", "]:80", "192.0.2.1:٨٠", "host:80",
        "192.0.2.1:80:80", "[2001:db8::1]80", "[]", "[", "[2001:db8::1]x:80",
    ])
    func `this is no endpoint`(_ text: String) { #expect(Endpoint(text) == nil) }

    @Test func `octets of another length are no address`() {
        for count in 0...20 where count != 4 && count != 16 {
            #expect(IPAddress(octets: [UInt8](repeating: 1, count: count)) == nil)
        }
    }

    @Test(arguments: [
        ("192.0.2.1", true), ("0.0.0.0", false), ("0.1.2.3", false), ("127.0.0.1", false), ("223.255.255.255", true),
        ("224.0.0.1", false), ("255.255.255.255", false), ("2001:db8::1", true), ("::", false), ("::1", false),
        ("::2", true), ("ff02::1", false), ("fe80::1", true),
    ])
    func `only an address of one host can have a session`(_ text: String, _ isUnicast: Bool) throws {
        #expect(try #require(IPAddress(text)).isUnicast == isUnicast)
    }
}
