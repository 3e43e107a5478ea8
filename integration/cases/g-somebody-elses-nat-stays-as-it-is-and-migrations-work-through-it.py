#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway has a virtual address with DNAT to A, and a masquerade, of somebody else's: migrations work on both
datapaths, and these rules are octet for octet what they were."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from capture import Capture
from inspection import ruleset_of_others, sockets, table_exists
from lab import address
from stage import Stage, captures

PORT = 7000


def one(case, stage, port, mode, family, datapath, fixed):
    what = "%s, IPv%d, %s datapath, %s port" % (mode, family, datapath, "same" if fixed else "new")
    name = "s%d" % port
    client, home = address("c", family), stage.lab.home(family)
    at_client, at_home = Capture(stage.lab, "c"), Capture(stage.lab, "a")
    with captures(at_client, at_home):
        up = stage.open(name, mode, port, family, sport=port + 20000 if fixed else 0, think=1, rate=5000000)
        case.equal(up["server"], "A", what + ": the virtual address is A's")
        for letter in ("b", "d", "return", "b", "return"):
            more = () if letter == "return" else ("--datapath", datapath)
            answer, up, mark = stage.moved(name, letter, *more, patience=8)
            good = answer.code == 0 and bool(up) and stage.client.works(name)
            case.ok(good, "%s: to %s" % (what, letter), lambda: "%s\n%s\n%s" % (
                answer, stage.client.stats()[name], stage.lab.run("g", "conntrack", "-L", "-p", "tcp").stdout))
            case.equal(stage.client.seen(name, "refused", "failed", mark=mark), [],
                       "%s: to %s, nobody refused" % (what, letter))
            server = "a" if letter == "return" else letter
            others = [host for host in "abd" if host != server]
            held = [(host, s) for host in others for s in sockets(stage.lab, host) if s[2] == port and s[0] == "ESTAB"]
            case.equal(held, [], "%s: to %s, no other host has a socket of it" % (what, letter))
        stage.client.close(name)
    strangers = {(s.source, s.sport) for s in at_client.segments(destination=client)}
    # Last words of the session before this one may still be on their way.
    case.ok((home, port) in strangers and strangers <= {(home, each) for each in stage.ports},
            what + ": the client saw the virtual address only", lambda: str(strangers))
    case.equal([str(s) for s in at_client.segments() + at_home.segments() if not s.good][:5], [],
               what + ": every checksum is right")


def body(case):
    table = [("rr", 4, "kernel", True), ("rr", 4, "queue", True), ("idle", 6, "kernel", False),
             ("idle", 6, "queue", False)]
    if case.full:
        table += [(mode, family, datapath, fixed) for mode in ("idle", "bulk") for family in (4, 6)
                  for datapath in ("kernel", "queue") for fixed in (True, False)]
    ports = list(range(PORT, PORT + len(table)))
    with Stage(ports, lab={"vip": True}) as stage:
        before = ruleset_of_others(stage.lab)
        for port, row in zip(ports, table):
            one(case, stage, port, *row)
        case.equal(ruleset_of_others(stage.lab), before, "the rules of others are octet for octet what they were")
        stage.clean(case)
        refused = stage.daemon.remove()
        case.ok(refused.returncode != 0 and "stop it first" in refused.stderr and table_exists(stage.lab),
                "nfqmigd remove refuses while a daemon runs", refused.stderr)
        stage.daemon.stop()
        removed = stage.daemon.remove()
        case.equal(removed.returncode, 0, "nfqmigd remove removes our table")
        everything = stage.lab.run("g", "nft", "list", "ruleset").stdout
        case.ok("nfqmigd" not in everything, "and nothing of ours is left", everything)
        case.equal(ruleset_of_others(stage.lab), before, "and everything of others")


if __name__ == "__main__":
    tap.main(body)
