#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A link beyond the gateway gets a smaller MTU after the migration, on the client's side or on the host's: the ICMP
error of the router there reaches its sender in the names the sender knows, and the bulk transfer goes on. Both
datapaths, both families; also when the small link is the gateway's own, and when the binding is a whole service's."""

import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from capture import Capture
from lab import address
from stage import Stage, captures

PORT, SMALL = 7000, 1300
# Which link shrinks (both its ends, as links do), and who then has to learn it from somebody else.
PLACES = {"client's": ((("rc", "down0"), ("c", "eth0")), "b"),
          "host's": ((("rb", "down0"), ("b", "eth0")), "c"),
          "gateway's to the client": ((("g", "to-c"), ("rc", "up0")), "b"),
          "gateway's to the host": ((("g", "to-b"), ("rb", "up0")), "c")}


def learned(stage, host, family, peer):
    """The path MTU that a host's TCP has learned towards a peer; None when it has not."""
    words = stage.lab.run(host, "ip", "-%d" % family, "route", "get", peer).stdout
    match = re.search(r"mtu (\d+)", words)
    return int(match.group(1)) if match else None


def one(case, stage, family, datapath, place, scope=None):
    ends, learner = PLACES[place]
    what = "the %s link, IPv%d, %s datapath, scope %s" % (place, family, datapath, scope or "connection")
    name = "s-%d-%s-%s-%s-%s" % (family, datapath, scope, *ends[0])
    client, home = address("c", family), stage.lab.home(family)
    peer = home if learner == "c" else client
    try:
        stage.open(name, "bulk", PORT, family, sport=20001, rate=3000000, scope=scope)
        answer, up, _ = stage.moved(name, "b", "--datapath", datapath)
        if not case.ok(answer.code == 0 and bool(up) and stage.client.works(name), what + ": the session is on B",
                       lambda: str(answer)):
            return
        case.equal(learned(stage, learner, family, peer), None, what + ": no smaller MTU is known before")
        at_learner = Capture(stage.lab, learner)
        mark = stage.client.mark()
        with captures(at_learner):
            before = stage.client.stats()[name]
            for router, device in ends:
                stage.lab.set_mtu(router, device, SMALL)
            time.sleep(3)
            after = stage.client.stats()[name]
        case.ok(after["received"] - before["received"] > 1_500_000 and after["sent"] - before["sent"] > 1_500_000,
                what + ": the transfer goes on in both directions", lambda: "%s\n%s" % (before, after))
        case.equal(stage.client.seen(name, "down", mark=mark), [], what + ": on the same connection")
        case.equal(learned(stage, learner, family, peer), SMALL, what + ": the sender has learned the path's MTU")
        own = [s for s in at_learner.segments() if s.ttl == 64 and PORT in (s.sport, s.dport)]
        case.ok(bool(own) and max(s.octets for s in own[len(own) // 2:]) == SMALL,
                what + ": and fills it", lambda: str(max((s.octets for s in own[len(own) // 2:]), default=0)))
    finally:
        for router, device in ends:
            stage.lab.set_mtu(router, device, 1500)
        if name in stage.client.opened:
            stage.client.close(name)
        stage.daemon.migrate(stage.who(name), stage.home(name), None)
        for host in "cab":
            stage.lab.run(host, "ip", "route", "flush", "cache")
            stage.lab.run(host, "ip", "-6", "route", "flush", "cache")


def body(case):
    for datapath in ("kernel", "queue"):
        with Stage([PORT], lab={"hops": ("c", "b")}) as stage:
            for place in PLACES:
                if not case.full and place.startswith("gateway"):
                    continue
                for family in (4, 6):
                    one(case, stage, family, datapath, place)
                    if case.full or (datapath == "queue" and family == 4):
                        one(case, stage, family, datapath, place, "service")
            stage.clean(case)
            stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
