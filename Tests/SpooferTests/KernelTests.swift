// SPDX-License-Identifier: GPL-3.0-or-later

import Foundation
import Glibc
import Spoofer
import Testing
import Wire

/// Handshakes with the TCP of this machine's kernel, over a gateway that stops everything between the two ends.
@Suite(.enabled(if: Lab.obstacle == nil, Comment(rawValue: Lab.obstacle ?? "")), .serialized)
struct KernelTests {
    static let mark: UInt32 = 0x6e600000

    struct Circumstances: CustomTestStringConvertible, Sendable {
        var family = AddressFamily.ipv4
        var hasTimestamps = true
        var hasFirewalls = false
        var testDescription: String {
            "\(family), timestamps \(hasTimestamps ? "on" : "off"), \(hasFirewalls ? "with" : "without") host firewalls"
        }
    }

    static let all: [Circumstances] = AddressFamily.allCases.flatMap { family in
        [false, true].flatMap { timestamps in
            [false, true].map { Circumstances(family: family, hasTimestamps: timestamps, hasFirewalls: $0) }
        }
    }

    /// A connection in a lab, and the gateway's means.
    final class Scene {
        let lab: Lab
        let capture: Capture
        let clientEnd: Endpoint
        let serverEnd: Endpoint
        let listener: TCPSocket
        let family: AddressFamily
        /// How many segments were seen while handshakes were driven.
        var seen = 0

        init(_ circumstances: Circumstances, receiveBuffer: Int32? = nil) throws {
            lab = try Lab()
            family = circumstances.family
            clientEnd = Endpoint(address: Lab.address(.client, family), port: 40_000)
            serverEnd = Endpoint(address: Lab.address(.server, family), port: 5000)
            for host in [Lab.Host.client, .server] {
                try lab.run(host, "sysctl -qw net.ipv4.tcp_timestamps=\(circumstances.hasTimestamps ? 1 : 0)")
                guard circumstances.hasFirewalls else { continue }
                try lab.nft(
                    host,
                    """
                    table inet host { chain input { type filter hook input priority 0
                      ct state invalid counter drop
                      ct state established,related accept
                      meta l4proto icmp accept
                      meta l4proto ipv6-icmp accept
                      tcp flags & (fin|syn|rst|ack) == syn accept
                      counter drop
                    } }
                    """)
            }
            capture = try Capture(lab)
            listener = try TCPSocket.listen(lab, .server, serverEnd, receiveBuffer: receiveBuffer)
            try warmUp()
        }

        /// From now on nothing passes the gateway between the two ends, as in a migration's transit.
        func freeze() throws {
            try lab.nft(
                .gateway,
                """
                table inet freeze { chain stop { type filter hook prerouting priority -300
                  tcp sport 5000 drop
                  tcp dport 5000 drop
                } }
                """
            )
            // What came before is over.
            while capture.next(until: 0) != nil {}
        }

        /// Lets all neighbours be found first: a SYN that is repeated meanwhile has its SYN-ACK repeated, and answering
        /// that takes up the client's one answer per 500 ms.
        func warmUp() throws {
            _ = try TCPSocket.connect(lab, from: Endpoint(address: clientEnd.address, port: 39_999), to: serverEnd)
            _ = try listener.accept()
        }

        func connect() throws -> (client: TCPSocket, server: TCPSocket) {
            let client = try TCPSocket.connect(lab, from: clientEnd, to: serverEnd)
            return (client, try listener.accept())
        }

        func handshake(
            _ kind: ResetHandshake.Order.Kind, state: ResetHandshake.Order.ConnectionState = .established, seed: UInt64
        ) -> ResetHandshake {
            let tuple =
                kind == .server
                ? FourTuple(source: clientEnd, destination: serverEnd)
                : FourTuple(source: serverEnd, destination: clientEnd)
            return ResetHandshake(.init(tuple: tuple, kind: kind, state: state), seed: seed)
        }

        /// Drives handshakes side by side until each has an outcome; returns the outcomes and how long each took in ms.
        func drive(_ handshakes: inout [ResetHandshake]) throws -> [Double] {
            let socket = try lab.inside(.gateway) { try SocketBox() }
            var times = handshakes.map { _ in 0.0 }
            let start = Capture.now
            func carryOut(_ actions: [ResetHandshake.Action], _ index: Int) throws {
                for action in actions {
                    switch action {
                    case .send(let segment): #expect(socket.socket.send([segment]).isEmpty)
                    case .finish: times[index] = Double(Capture.now - start) / 1e6
                    }
                }
            }
            for index in handshakes.indices { try carryOut(handshakes[index].start(at: Capture.now), index) }
            while handshakes.contains(where: { $0.outcome == nil }), Capture.now - start < 6_000_000_000 {
                let deadline = handshakes.compactMap(\.deadline).min() ?? Capture.now + 100_000_000
                if let segment = capture.next(until: deadline) {
                    seen += 1
                    for index in handshakes.indices where handshakes[index].order.tuple.reversed == segment.tuple {
                        try carryOut(handshakes[index].observed(segment, at: Capture.now), index)
                    }
                }
                for index in handshakes.indices {
                    try carryOut(handshakes[index].deadlinePassed(at: Capture.now), index)
                }
            }
            return times
        }
    }

    /// Lets a closure return the socket, which cannot be copied.
    final class SocketBox {
        let socket: SegmentSocket
        init() throws { socket = try SegmentSocket(mark: KernelTests.mark) }
    }

    @Test(arguments: all)
    func `server and client are reset and prove it`(circumstances: Circumstances) throws {
        let scene = try Scene(circumstances)
        for round in UInt64(1)...5 {
            try? scene.lab.nft(.gateway, "delete table inet freeze")
            let (client, server) = try scene.connect()
            #expect(client.write(500) == 500)
            #expect(server.write(700) == 700)
            usleep(60_000)
            _ = (client.read(1000), server.read(1000))
            try scene.freeze()
            var handshakes = [scene.handshake(.server, seed: round), scene.handshake(.client, seed: round + 100)]
            let times = try scene.drive(&handshakes)
            #expect(handshakes.map(\.outcome) == [.proven, .proven])
            #expect(server.state == 7, "CLOSE")
            #expect(client.state == 7, "CLOSE")
            #expect(server.read(1) == -1, "no octet of ours was delivered")
            for handshake in handshakes {
                #expect(handshake.report.resets == 1)
                #expect(handshake.report.challenges <= 6)
            }
            print("\(circumstances.testDescription): proven after \(times) ms")
        }
    }

    @Test(arguments: AddressFamily.allCases)
    func `data lost in flight and a keystroke on its way do not hinder it`(family: AddressFamily) throws {
        let scene = try Scene(Circumstances(family: family))
        let (client, server) = try scene.connect()
        try scene.freeze()
        _ = (client.write(1), server.write(3000))
        var handshakes = [scene.handshake(.server, seed: 1), scene.handshake(.client, seed: 2)]
        _ = try scene.drive(&handshakes)
        #expect(handshakes.map(\.outcome) == [.proven, .proven])
        #expect((server.state, client.state) == (7, 7))
        #expect(server.read(10) == -1)
        #expect(client.read(10) == -1)
    }

    @Test(arguments: [false, true])
    func `a server whose window is closed is reset`(hasFirewalls: Bool) throws {
        let scene = try Scene(Circumstances(hasFirewalls: hasFirewalls), receiveBuffer: 4096)
        let (client, server) = try scene.connect()
        var written = 0
        for _ in 0..<200 {
            written += max(0, client.write(4096))
            usleep(2000)
        }
        // The client's probes of the closed window use up the server's limit for answers.
        usleep(500_000)
        #expect(written > 4096)
        try scene.freeze()
        var handshakes = [scene.handshake(.server, seed: 1), scene.handshake(.client, seed: 2)]
        let times = try scene.drive(&handshakes)
        #expect(handshakes.map(\.outcome) == [.proven, .proven])
        #expect(server.state == 7)
        #expect(client.state == 7)
        print("zero window: proven after \(times) ms")
    }

    @Test(arguments: all.filter(\.hasTimestamps))
    func `a living server answers every proving challenge at once`(circumstances: Circumstances) throws {
        let scene = try Scene(circumstances)
        let (client, server) = try scene.connect()
        #expect(client.write(500) == 500)
        usleep(60_000)
        try scene.freeze()
        // No RST arrives, so the server lives on.
        try scene.lab.nft(
            .server,
            "table inet lossy { chain p { type filter hook prerouting priority -400; tcp flags & rst == rst drop; } }")
        var handshakes = [scene.handshake(.server, seed: 1)]
        _ = try scene.drive(&handshakes)
        #expect(handshakes[0].outcome == .unproven)
        let report = handshakes[0].report
        #expect(report.challenges - 4 >= 8)
        #expect(scene.seen == report.challenges - 4 + 1, "one answer to the first four, one to each of the others")
        #expect(server.state == 1)
        #expect(server.read(1000) == 500, "and no octet more")
        // When RSTs arrive again, the next thing that it says is its last.
        try scene.lab.run(.server, "nft delete table inet lossy")
        #expect(server.write(10) == 10)
        var last: ResetHandshake.Outcome? = .unproven
        let socket = try scene.lab.inside(.gateway) { try SocketBox() }
        let end = Capture.now + 2_000_000_000
        while last != .proven, let segment = scene.capture.next(until: end) {
            guard segment.tuple == handshakes[0].order.tuple.reversed else { continue }
            for action in handshakes[0].observed(segment, at: Capture.now) {
                switch action {
                case .send(let segment): #expect(socket.socket.send([segment]).isEmpty)
                case .finish(let outcome): last = outcome
                }
            }
        }
        #expect(last == .proven)
        #expect(server.state == 7)
    }

    @Test func `a half-open server is reset through its SYN-ACK`() throws {
        let scene = try Scene(Circumstances())
        // The client's answer to the SYN-ACK is lost, and so it is half open at the server only.
        try scene.lab.nft(
            .gateway,
            "table inet half { chain stop { type filter hook prerouting priority -300; tcp sport 5000 drop; } }")
        let client = try TCPSocket.connect(scene.lab, from: scene.clientEnd, to: scene.serverEnd, waiting: false)
        usleep(50_000)
        try scene.freeze()
        #expect(client.state == 2, "SYN_SENT")
        var handshakes = [
            scene.handshake(.server, state: .synReceived, seed: 1), scene.handshake(.client, state: .synSent, seed: 2),
        ]
        let before = try scene.lab.run(.server, "ss -Htan state syn-recv")
        #expect(before.contains(":5000"))
        let times = try scene.drive(&handshakes)
        #expect(handshakes[0].outcome == .proven)
        #expect(handshakes[0].report.resets >= 1)
        #expect(times[0] > 2000, "not before it was quiet")
        #expect(try scene.lab.run(.server, "ss -Htan state syn-recv").isEmpty)
        // The kick makes the client repeat its SYN at once instead of after a second.
        #expect([.reconnected, .proven].contains(handshakes[1].outcome))
        #expect(times[1] < 200)
        #expect(handshakes[1].report.resets == 0)
        #expect(handshakes[1].report.challenges == 1)
        #expect(client.state == 2, "still waiting, not refused")
    }

    @Test func `a server in FIN-WAIT and a client in CLOSE-WAIT are reset`() throws {
        let scene = try Scene(Circumstances())
        let (client, server) = try scene.connect()
        shutdown(server.descriptor, Int32(SHUT_WR))
        usleep(50_000)
        #expect((server.state, client.state) == (5, 8))
        try scene.freeze()
        var handshakes = [scene.handshake(.server, seed: 1), scene.handshake(.client, seed: 2)]
        _ = try scene.drive(&handshakes)
        #expect(handshakes.map(\.outcome) == [.proven, .proven])
        #expect((server.state, client.state) == (7, 7))
    }

    @Test func `a silent server is unproven, and the gateway's own firewall is named`() throws {
        let scene = try Scene(Circumstances())
        let (client, server) = try scene.connect()
        defer { withExtendedLifetime(client) {} }
        try scene.freeze()
        try scene.lab.nft(
            .server, "table inet dead { chain input { type filter hook input priority 0; tcp dport 5000 drop; } }")
        var handshakes = [scene.handshake(.server, seed: 1)]
        let times = try scene.drive(&handshakes)
        #expect(handshakes[0].outcome == .unproven)
        #expect((2900...3200).contains(times[0]))
        #expect(server.state == 1)
        try scene.lab.nft(
            .gateway, "table inet own { chain o { type filter hook output priority 0; meta mark 0x6e600000 drop; } }")
        let socket = try scene.lab.inside(.gateway) { try SocketBox() }
        var refused: [TCPSegment] = []
        for (family, host) in [(AddressFamily.ipv4, Lab.Host.server), (.ipv6, .server)] {
            let segment = TCPSegment(
                tuple: FourTuple(
                    source: Endpoint(address: Lab.address(.client, family), port: 1),
                    destination: Endpoint(address: Lab.address(host, family), port: 5000)),
                sequence: SequenceNumber(1), acknowledgement: SequenceNumber(1), flags: .ack)
            let errors = socket.socket.send([segment])
            #expect(errors.first?.isRefusedByFirewall == true)
            #expect(errors.first?.tuple == segment.tuple)
            #expect(errors.first?.description.contains("packet filter refused") == true)
            refused += [segment, segment]
        }
        // One by one, whatever becomes of the others.
        var long = refused[0]
        long.payloadLength = .max
        refused.insert(long, at: 1)
        try scene.lab.nft(.gateway, "delete chain inet own o")
        try scene.lab.nft(
            .gateway,
            "table inet own { chain o { type filter hook output priority 0; ip version 4 meta mark 0x6e600000 drop; } }"
        )
        let errors = socket.socket.send(refused)
        #expect(errors.map(\.tuple?.source.address.family) == [.ipv4, .ipv4, .ipv4])
        #expect(errors.filter(\.isRefusedByFirewall).count == 2)
    }
}
