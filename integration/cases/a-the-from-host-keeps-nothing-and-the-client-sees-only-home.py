#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a migration the from-host has no socket of the session, no segment of the client's has reached it since the
switch, none of its segments has reached the client, and the client has seen nobody but home. Checksums are right."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from capture import SYN, ACK, Capture
from inspection import sockets
from lab import address
from stage import Stage, captures

# Between the kernel's change of the table and the daemon's note of the time a packet may still be on its way
# through the gateway, on the other processor.
SLACK = 0.001


def check(case, stage, name, what, at, answer, up):
    family, port = stage.sessions[name]["family"], stage.sessions[name]["port"]
    client, home, b = address("c", family), stage.lab.home(family), address("b", family)
    switched = answer["switchedAt"]
    case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": the outcome is proven")
    if not case.ok(bool(up) and bool(switched), what + ": the client is served by B", lambda: str(answer)):
        return
    old = next(s.sport for s in at["c"].segments(source=client, dport=port) if s.flags & (SYN | ACK) == SYN)
    to_a = [s for s in at["a"].segments(source=client, dport=port, ttl=63)]
    case.ok(any(s.at < switched for s in to_a), what + ": the capture on A shows the client before the switch")
    late = [s for s in to_a if s.at > switched + SLACK]
    case.ok(not late, what + ": no segment of the client's reached A after the switch",
            lambda: "switched at %.6f\n%s" % (switched, "\n".join(map(str, late[:10]))))

    spoken = [s for s in at["a"].segments(sport=port, ttl=64) if s.at > switched]
    case.ok(bool(spoken), what + ": A has spoken after the switch (its challenge acknowledgement at least)")
    heard = at["c"].segments(destination=client, dport=old, ttl=63)
    leaked = [s for s in heard if s.at > switched and any(s.same(one) and s.at >= one.at for one in spoken)]
    case.ok(not leaked, what + ": none of A's segments reached the client after the switch",
            lambda: "\n".join(map(str, leaked[:10])))
    syn = [s for s in at["c"].segments(source=client, dport=port) if s.flags & (SYN | ACK) == SYN and s.at > switched]
    case.ok(bool(syn), what + ": the capture on the client shows its new connection")
    between = [s for s in heard if switched + SLACK < s.at < syn[0].at] if syn else heard
    case.ok(not between, what + ": nothing was forwarded to the client between the switch and its SYN",
            lambda: "\n".join(map(str, between[:10])))
    strangers = {(s.source, s.sport) for s in at["c"].segments(destination=client)} | {
        (s.destination, s.dport) for s in at["c"].segments(source=client)}
    case.equal(strangers, {(home, port)}, what + ": the client saw home's address and port only")
    seen_by_b = {s.source for s in at["b"].segments(dport=port, destination=b)} - {client}
    # The gateway has asked B whether it listens.
    case.ok(seen_by_b <= {address("b", family, 1)}, what + ": B saw the client's own address", lambda: str(seen_by_b))
    for host, capture in at.items():
        case.equal([str(s) for s in capture.segments() if not s.good][:5], [],
                   "%s: every checksum on %s is right" % (what, host.upper()))
        case.equal(capture.bad_checksums()[:5], [], "%s: tshark finds no wrong checksum on %s" % (what, host.upper()))
        case.ok(capture.verified_checksums() > 5, "%s: tshark has looked at checksums on %s" % (what, host.upper()))


def one(case, mode, family, datapath, fixed, host_firewalls=False):
    what = "%s, IPv%d, %s datapath, %s port" % (mode, family, datapath, "same" if fixed else "new")
    port = 7000
    with Stage([port], lab={"host_firewalls": host_firewalls}) as stage:
        at = {host: Capture(stage.lab, host) for host in "cab"}
        with captures(*at.values()):
            stage.open("s", mode, port, family, sport=20001 if fixed else 0, think=1, rate=5000000)
            stage.client.works("s")
            answer, up, _ = stage.moved("s", "b", "--datapath", datapath)
            case.ok(stage.client.works("s"), what + ": the session works on B", lambda: str(answer))
            client = address("c", family)
            left = [s for s in sockets(stage.lab, "a") if s[3] == client and s[2] == port]
            case.equal(left, [], what + ": A has no socket of the session")
            now = [s for s in sockets(stage.lab, "b") if s[3] == client and s[2] == port and s[0] == "ESTAB"]
            case.equal(len(now), 1, what + ": B has one")
        check(case, stage, "s", what, at, answer, up)
        stage.healthy(case)


def body(case):
    for datapath in ("kernel", "queue"):
        for family in (4, 6):
            one(case, "rr", family, datapath, fixed=True)
    one(case, "idle", 4, "kernel", fixed=False)
    one(case, "bulk", 4, "kernel", fixed=True, host_firewalls=True)
    if case.full:
        for datapath in ("kernel", "queue"):
            for mode in ("idle", "bulk", "tick"):
                for family in (4, 6):
                    for fixed in (False, True):
                        one(case, mode, family, datapath, fixed, host_firewalls=family == 6)


if __name__ == "__main__":
    tap.main(body)
