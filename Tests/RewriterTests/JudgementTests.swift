// SPDX-License-Identifier: GPL-3.0-or-later

import Rewriter
import Testing
import Wire

@Suite struct JudgementTests {
    static let client = Endpoint(address: .v4(IPv4Address(rawValue: 0xCB00_7109)), port: 49155)
    static let home = Endpoint(address: .v4(IPv4Address(rawValue: 0xC633_6406)), port: 80)
    static let host = Endpoint(address: .v4(IPv4Address(rawValue: 0xC000_024D)), port: 55000)
    static let forth = FourTuple(source: client, destination: home)
    static let back = FourTuple(source: host, destination: client)

    private func table(_ rules: [FlowKey: FlowRule]) -> FlowTable {
        var table = FlowTable(capacity: 8, seed: 99)
        for (key, rule) in rules { table.set(key, rule) }
        return table
    }

    private func judge(
        _ table: inout FlowTable, _ octets: inout [UInt8], _ stage: Stage, _ checksum: ChecksumState = .complete,
        isWhole: Bool = true
    ) -> Judgement {
        var packet = octets.mutableSpan
        return table.judge(&packet, stage: stage, checksum: checksum, isWhole: isWhole)
    }

    private func segment(_ tuple: FourTuple, _ flags: TCPFlags, data: UInt16 = 0) -> [UInt8] {
        TCPSegment(
            tuple: tuple, sequence: SequenceNumber(1000), acknowledgement: SequenceNumber(2000), flags: flags,
            window: 77, payloadLength: data
        ).encode()
    }

    private func observed(_ tuple: FourTuple, _ flags: TCPFlags, data: UInt32 = 0) -> ObservedSegment {
        ObservedSegment(
            tuple: tuple, sequence: SequenceNumber(1000), acknowledgement: SequenceNumber(2000), flags: flags,
            window: 77, payloadLength: data)
    }

    /// The rule under which a golden vector's verb is what the table must do, and the stage.
    private func rule(for vector: Vector) throws -> (FlowKey, FlowRule) {
        let tuple = try vector.tuple("tuple")
        let to = try vector.endpoint("to")
        return switch vector["verb"] {
        case "destination": (FlowKey(stage: .prerouting, tuple: tuple), .passage(.translateDestination(to)))
        case "source": (FlowKey(stage: .postrouting, tuple: tuple), .passage(.translateSource(to)))
        case "quoted-source":
            (FlowKey(stage: .prerouting, tuple: tuple.reversed), .passage(.translateDestination(to)))
        default: (FlowKey(stage: .postrouting, tuple: tuple.reversed), .passage(.translateSource(to)))
        }
    }

    @Test func `a packet that the kernel will cut has its whole checksum where conntrack checks it`() throws {
        for stage in Stage.allCases {
            let (tuple, passage): (FourTuple, Passage) =
                stage == .prerouting
                ? (Self.forth, .translateDestination(Self.host)) : (Self.back, .translateSource(Self.home))
            var table = table([FlowKey(stage: stage, tuple: tuple): .passage(passage)])
            var octets = segment(tuple, .ack, data: 3000)
            // As the sender leaves it: the sum of the pseudo-header alone.
            (octets[36], octets[37]) = (0x12, 0x34)
            #expect(judge(&table, &octets, stage, .segmented).ruling == .acceptRewritten)
            guard case .tcp(let tcp) = Recognition(octets.span) else {
                Issue.record("not TCP")
                continue
            }
            if stage == .prerouting {
                #expect(tcp.checksumFromScratch(in: octets.span) == 0)
            } else {
                #expect((octets[36], octets[37]) == (0x12, 0x34))
            }
        }
    }

    @Test(
        arguments: Vector.all("tcp-rewrite.hex") + Vector.all("icmp-rewrite.hex"),
        [ChecksumState.complete, .pending])
    func `a covered packet becomes the packet that scapy makes`(_ vector: Vector, _ checksum: ChecksumState) throws {
        let (key, rule) = try rule(for: vector)
        let tuple = try vector.tuple("tuple")
        let isError = vector["verb"].hasPrefix("quoted")
        for key in [key, key.anyPort] {
            var table = table([key: rule])
            var octets = try vector.packet("before")
            let judgement = judge(&table, &octets, key.stage, checksum)
            #expect(judgement.ruling == .acceptRewritten)
            // A client that opens a connection to a translated destination is reported; nothing else is.
            let isReported = vector["verb"] == "destination" && vector.name.contains("SYN")
            #expect(judgement.observed?.tuple == (isReported ? tuple : nil))
            #expect(judgement.learns == (vector["verb"] == "destination"))
            #expect(judgement.note == (isError ? .icmp : .none))
            #expect(try dump(octets) == dump(vector.packet("after")))
        }
    }

    @Test(arguments: Vector.all("tcp-rewrite.hex") + Vector.all("icmp-rewrite.hex"))
    func `what no rule covers is accepted as it is`(_ vector: Vector) throws {
        let (key, rule) = try rule(for: vector)
        var others: [FlowKey] = []
        for place in 0..<5 {
            var other = key
            switch place {
            case 0: other.stage = key.stage == .prerouting ? .postrouting : .prerouting
            case 1: other.tuple.source.port ^= 1
            case 2: other.tuple.destination.port ^= 1
            case 3: other.tuple.source.address = try vector.endpoint("to").address
            default: other.tuple = key.tuple.reversed
            }
            others.append(other)
        }
        // The server's port 0 is no wildcard.
        var server = key
        if key.stage == .prerouting { server.tuple.destination.port = 0 } else { server.tuple.source.port = 0 }
        others.append(server)
        for other in others {
            var table = table([other: rule])
            var octets = try vector.packet("before")
            #expect(judge(&table, &octets, key.stage) == Judgement(.accept, note: .unknownFlow))
            #expect(try octets == vector.packet("before"))
        }
    }

    @Test func `the exact rule goes before the rule for any port`() {
        let key = FlowKey(stage: .prerouting, tuple: Self.forth)
        var table = table([key: .passage(.pass), key.anyPort: .freeze])
        var octets = segment(Self.forth, .ack)
        #expect(judge(&table, &octets, .prerouting).ruling == .accept)
        table.remove(key)
        #expect(judge(&table, &octets, .prerouting).ruling == .drop)
        var other = Self.forth
        other.source.port = 1
        octets = segment(other, .ack)
        #expect(judge(&table, &octets, .prerouting).ruling == .drop)
    }

    @Test(arguments: [TCPFlags.syn, .ack, TCPFlags([.fin, .ack]), .rst, TCPFlags([.syn, .ack])])
    func `a frozen flow lets nothing pass and shows everything`(_ flags: TCPFlags) {
        var table = table([FlowKey(stage: .prerouting, tuple: Self.forth): .freeze])
        for isWhole in [true, false] {
            var octets = segment(Self.forth, flags, data: 3)
            let before = octets
            if !isWhole { octets.removeLast(3) }
            #expect(
                judge(&table, &octets, .prerouting, isWhole: isWhole)
                    == Judgement(.drop, note: .none, observed: observed(Self.forth, flags, data: 3)))
            #expect(octets.elementsEqual(before.prefix(octets.count)))
        }
    }

    @Test func `the awaited SYN is observed and opens the way for what follows`() {
        let key = FlowKey(stage: .prerouting, tuple: Self.forth)
        var table = table([key: .awaitSYN(.translateDestination(Self.host))])
        for flags in [TCPFlags.ack, .rst, TCPFlags([.fin, .ack]), TCPFlags([.rst, .ack]), TCPFlags([.syn, .rst])] {
            var old = segment(Self.forth, flags)
            #expect(
                judge(&table, &old, .prerouting)
                    == Judgement(.drop, note: .none, observed: observed(Self.forth, flags)))
        }
        #expect(table.lookup(key) == .awaitSYN(.translateDestination(Self.host)))
        let translated = FourTuple(source: Self.client, destination: Self.host)
        var syn = segment(Self.forth, .syn)
        #expect(
            judge(&table, &syn, .prerouting)
                == Judgement(
                    .acceptRewritten, note: .none, observed: observed(Self.forth, .syn), learns: true))
        #expect(syn == segment(translated, .syn))
        #expect(table.lookup(key) == .reconnected(.translateDestination(Self.host)))
        // The SYN again is a retransmission, and reported again.
        for flags in [TCPFlags.syn, .ack, .rst] {
            var next = segment(Self.forth, flags)
            let reported = flags == .syn ? observed(Self.forth, flags) : nil
            // Of segments without SYN the kernel learns from the first, and from few others.
            #expect(
                judge(&table, &next, .prerouting)
                    == Judgement(.acceptRewritten, note: .none, observed: reported, learns: flags != .rst))
            #expect(next == segment(translated, flags))
        }
    }

    @Test func `the kernel is reminded of every connection's reply, but not by every segment`() {
        let other = FourTuple(
            source: Endpoint(address: Self.client.address, port: Self.client.port + 1), destination: Self.home)
        let rule = FlowRule.passage(.translateDestination(Self.host))
        var table = table([
            FlowKey(stage: .prerouting, tuple: Self.forth): rule, FlowKey(stage: .prerouting, tuple: other): rule,
        ])
        // Two connections that take turns, as those of one program do.
        var reminders = [0, 0]
        for number in 0..<1220 {
            var packet = segment(number.isMultiple(of: 2) ? Self.forth : other, .ack)
            let judgement = judge(&table, &packet, .prerouting)
            #expect(judgement.ruling == .acceptRewritten)
            if judgement.learns { reminders[number % 2] += 1 }
        }
        #expect(reminders == [10, 10])
        // Whatever is due, a SYN teaches.
        for _ in 0..<3 {
            var syn = segment(Self.forth, .syn)
            #expect(judge(&table, &syn, .prerouting).learns)
        }
    }

    @Test(arguments: [TCPFlags.syn, TCPFlags([.syn, .ack])])
    func `a SYN on the kernel datapath, or a host's SYN-ACK, passes as it is`(_ flags: TCPFlags) {
        let key = FlowKey(stage: .prerouting, tuple: Self.forth)
        var table = table([key: .awaitSYN(.pass)])
        for expected in [observed(Self.forth, flags), nil] {
            var octets = segment(Self.forth, flags)
            #expect(
                judge(&table, &octets, .prerouting) == Judgement(.accept, note: .none, observed: expected))
            #expect(octets == segment(Self.forth, flags))
            #expect(table.lookup(key) == .reconnected(.pass))
        }
    }

    @Test func `a SYN that may be owed to a session waits, and its client's other segments do not`() {
        for (rule, others) in [(FlowRule.holdSYN(.pass), Ruling.accept), (.awaitDecision, .drop)] {
            let key = FlowKey(stage: .prerouting, tuple: Self.forth)
            for key in [key, key.anyPort] {
                var table = table([key: rule])
                for flags in [
                    TCPFlags.ack, .rst, TCPFlags([.fin, .ack]), TCPFlags([.syn, .ack]), TCPFlags([.syn, .rst]),
                ] {
                    var other = segment(Self.forth, flags)
                    let reported = others == .drop ? observed(Self.forth, flags) : nil
                    #expect(
                        judge(&table, &other, .prerouting) == Judgement(others, note: .none, observed: reported))
                }
                // Once more is a SYN that is repeated: the rule stays what it is.
                for _ in 0..<2 {
                    var syn = segment(Self.forth, .syn)
                    #expect(
                        judge(&table, &syn, .prerouting)
                            == Judgement(.hold, note: .none, observed: observed(Self.forth, .syn)))
                    #expect(syn == segment(Self.forth, .syn))
                }
                #expect(table.lookup(key) == rule)
            }
        }
    }

    @Test func `the end of a connection is carried on while SYNs wait`() {
        let key = FlowKey(stage: .prerouting, tuple: Self.forth)
        var table = table([key: .holdSYN(.translateDestination(Self.host)), key.anyPort: .holdSYN(.pass)])
        var fin = segment(Self.forth, [.fin, .ack])
        #expect(
            judge(&table, &fin, .prerouting) == Judgement(.acceptRewritten, note: .none, learns: true))
        #expect(fin == segment(FourTuple(source: Self.client, destination: Self.host), [.fin, .ack]))
        var syn = segment(Self.forth, .syn)
        #expect(judge(&table, &syn, .prerouting).ruling == .hold)
    }

    @Test func `a SYN that cannot be rewritten is still awaited`() {
        let key = FlowKey(stage: .prerouting, tuple: Self.forth)
        var table = table([key: .awaitSYN(.translateDestination(Self.host))])
        var syn = segment(Self.forth, .syn)
        #expect(judge(&table, &syn, .prerouting, isWhole: false) == Judgement(.drop, note: .truncated))
        #expect(table.lookup(key) == .awaitSYN(.translateDestination(Self.host)))
    }

    @Test(arguments: Vector.all("tcp-rewrite.hex") + Vector.all("icmp-rewrite.hex"))
    func `a copy that was cut is never returned in place of the packet`(_ vector: Vector) throws {
        let (key, rule) = try rule(for: vector)
        var table = table([key: rule])
        let before = try vector.packet("before")
        var octets = before
        #expect(judge(&table, &octets, key.stage, isWhole: false) == Judgement(.drop, note: .truncated))
        #expect(octets == before)
        // The packet's own length field says the same when the kernel does not.
        octets.removeLast()
        let judgement = judge(&table, &octets, key.stage)
        #expect(judgement.ruling != .acceptRewritten)
        // Where nothing is to be rewritten the cut does not matter.
        table.set(key, .passage(.pass))
        octets = before
        #expect(judge(&table, &octets, key.stage, isWhole: false).ruling == .accept)
    }

    @Test func `a rule of the other family drops what it cannot translate`() throws {
        let six = try #require(Endpoint("[2001:db8::1]:80"))
        var table = table([FlowKey(stage: .prerouting, tuple: Self.forth): .passage(.translateDestination(six))])
        var octets = segment(Self.forth, .ack)
        #expect(judge(&table, &octets, .prerouting) == Judgement(.drop, note: .otherFamily))
        #expect(octets == segment(Self.forth, .ack))
    }

    @Test(arguments: Vector.all("icmp-rewrite.hex"))
    func `errors about a flow in transit are dropped, and pass once the client is back`(_ vector: Vector) throws {
        let (key, rule) = try rule(for: vector)
        guard case .passage(let passage) = rule else { return }
        var octets = try vector.packet("before")
        for rule in [FlowRule.freeze, .awaitSYN(passage), .awaitDecision] {
            var table = table([key: rule])
            #expect(judge(&table, &octets, key.stage) == Judgement(.drop, note: .icmp))
            #expect(try octets == vector.packet("before"))
        }
        var table = table([key: .reconnected(.pass)])
        #expect(judge(&table, &octets, key.stage) == Judgement(.accept, note: .icmp))
        table.set(key, .reconnected(passage))
        #expect(judge(&table, &octets, key.stage) == Judgement(.acceptRewritten, note: .icmp))
        #expect(try dump(octets) == dump(vector.packet("after")))
    }

    @Test(arguments: Vector.all("icmp-rewrite.hex"))
    func `an error that does not go to the sender of what it quotes is not ours`(_ vector: Vector) throws {
        let (key, rule) = try rule(for: vector)
        var table = table([key: rule])
        var octets = try vector.packet("before")
        octets[octets[0] >> 4 == 4 ? 19 : 39] ^= 1
        let before = octets
        #expect(judge(&table, &octets, key.stage) == Judgement(.accept, note: .unknownFlow))
        #expect(octets == before)
    }

    @Test(arguments: Vector.all("recognition.hex"))
    func `what is no whole segment is ruled by its kind`(_ vector: Vector) throws {
        let kind = vector["kind"]
        guard kind != "tcp" else { return }
        var octets = try vector.packet("octets")
        let before = octets
        var table = table([:])
        let expected: Judgement =
            switch kind {
            case "fragment", "first fragment": Judgement(.accept, note: .fragment)
            case "other": Judgement(.accept, note: .otherProtocol)
            default: Judgement(.drop, note: .malformed)
            }
        #expect(judge(&table, &octets, .prerouting) == expected)
        if expected.ruling == .drop {
            #expect(judge(&table, &octets, .prerouting, isWhole: false) == Judgement(.drop, note: .truncated))
        }
        guard kind == "first fragment", case .fragment(let first?) = Recognition(octets.span) else { return }
        table.set(FlowKey(stage: .prerouting, tuple: first.fourTuple(in: octets.span)), .passage(.pass))
        #expect(judge(&table, &octets, .prerouting) == Judgement(.drop, note: .fragment))
        #expect(octets == before)
    }

    @Test(arguments: 0..<300)
    func `client and host see each other through the table as if there were none`(_ seed: Int) throws {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        guard packet.tuple.source.port != 0 else { return }
        let host = RandomPacket.endpoint(packet.tuple.source.address.family, using: &random)
        let home = packet.tuple.destination
        let isAnyPort = Bool.random(using: &random)
        // The host may see another source port, where there is one connection only.
        let port = isAnyPort || Bool.random(using: &random) ? 0 : UInt16.random(in: 1...65535, using: &random)
        let own = port == 0 ? 0 : packet.tuple.source.port
        var seen = packet.tuple.source
        if port != 0 { seen.port = port }
        var forth = FlowKey(stage: .prerouting, tuple: packet.tuple)
        // The same packet, seen as one that travels on after prerouting, gets its destination back in postrouting.
        var back = FlowKey(stage: .postrouting, tuple: FourTuple(source: host, destination: seen))
        if isAnyPort { (forth, back) = (forth.anyPort, back.anyPort) }
        var table = table([
            forth: .passage(.translateDestination(host, clientPort: port)),
            back: .passage(.translateSource(home, clientPort: own)),
        ])
        for checksum in [ChecksumState.complete, .pending] {
            var octets = packet.octets
            #expect(judge(&table, &octets, .prerouting, checksum).ruling == .acceptRewritten)
            if case .tcp(let tcp) = Recognition(octets.span) {
                #expect(tcp.fourTuple(in: octets.span) == FourTuple(source: seen, destination: host))
            }
            var reply = try mirrored(octets)
            #expect(judge(&table, &reply, .postrouting, checksum).ruling == .acceptRewritten)
            #expect(try dump(mirrored(reply)) == dump(packet.octets))
        }
    }

    @Test(arguments: 0..<300)
    func `an ICMP error about a translated source port finds its way, both checksums right`(_ seed: Int) throws {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        let error = packet.error(using: &random)
        guard case .icmpError(let before) = Recognition(error.span) else { return }
        let quoted = before.quotedTuple(in: error.span)
        guard before.ip.destination(in: error.span) == quoted.source.address else { return }
        let family = quoted.source.address.family
        let (other, port) = (
            RandomPacket.endpoint(family, using: &random), UInt16.random(in: 1...65535, using: &random)
        )
        for checksum in [ChecksumState.complete, .pending] {
            // About a segment of the host: the quoted source becomes the host, the quoted destination's port the one it sees.
            var table = table([
                FlowKey(stage: .prerouting, tuple: quoted.reversed): .passage(
                    .translateDestination(other, clientPort: port))
            ])
            var octets = error
            #expect(judge(&table, &octets, .prerouting, checksum).ruling == .acceptRewritten)
            guard case .icmpError(let after) = Recognition(octets.span) else {
                Issue.record("no error any more:\n\(dump(octets))")
                continue
            }
            let client = Endpoint(address: quoted.destination.address, port: port)
            #expect(after.quotedTuple(in: octets.span) == FourTuple(source: other, destination: client))
            // What was wrong stays wrong by as much, what was right stays right: the random packets' errors are right.
            #expect(after.checksumFromScratch(in: octets.span) == 0)
            // And back again: the octets that came.
            var back = FlowTable(capacity: 8, seed: 3)
            back.set(
                FlowKey(stage: .prerouting, tuple: FourTuple(source: client, destination: other)),
                .passage(.translateDestination(quoted.source, clientPort: quoted.destination.port)))
            #expect(judge(&back, &octets, .prerouting, .complete).ruling == .acceptRewritten)
            if checksum == .complete { #expect(dump(octets) == dump(error)) }
        }
    }

    /// The packet with source and destination exchanged: every checksum stays right, since a sum knows no order.
    private func mirrored(_ octets: [UInt8]) throws -> [UInt8] {
        guard case .tcp(let tcp) = Recognition(octets.span) else {
            Issue.record("not recognised:\n\(dump(octets))")
            return octets
        }
        var mirrored = octets
        let size = tcp.ip.family == .ipv4 ? 4 : 16
        for index in 0..<size { mirrored.swapAt(tcp.ip.sourceOffset + index, tcp.ip.destinationOffset + index) }
        for index in 0..<2 { mirrored.swapAt(tcp.ip.payloadOffset + index, tcp.ip.payloadOffset + 2 + index) }
        return mirrored
    }

    @Test(arguments: 0..<300)
    func `no packet can stop the program, and none is rewritten unless the ruling says so`(_ seed: Int) {
        var random = SplitMix64(seed: seed)
        let packet = RandomPacket(using: &random)
        let host = RandomPacket.endpoint(Bool.random(using: &random) ? .ipv4 : .ipv6, using: &random)
        var table = table([
            FlowKey(stage: .prerouting, tuple: packet.tuple).anyPort: .awaitSYN(.translateDestination(host)),
            FlowKey(stage: .postrouting, tuple: packet.tuple): .passage(.translateSource(host)),
            FlowKey(stage: .prerouting, tuple: packet.tuple.reversed): .passage(.translateDestination(host)),
            FlowKey(stage: .postrouting, tuple: packet.tuple.reversed): .passage(.translateSource(host)),
        ])
        for round in 0..<60 {
            var octets = Bool.random(using: &random) ? packet.octets : packet.error(using: &random)
            for _ in 0..<(round % 4) { octets[Int(random.next() % UInt64(octets.count))] = UInt8(round) }
            if round % 3 == 0 { octets.removeLast(Int.random(in: 0...octets.count, using: &random)) }
            let before = octets
            let judgement = judge(
                &table, &octets, round % 2 == 0 ? .prerouting : .postrouting,
                [.complete, .pending, .segmented][round % 3], isWhole: round % 5 != 0)
            if judgement.ruling != .acceptRewritten { #expect(octets == before) }
            if judgement.learns { #expect(judgement.ruling == .acceptRewritten) }
            #expect(octets.count == before.count)
        }
    }
}
