#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""With offloads on, as on a host, packets of many segments come to the gateway: on both datapaths, in both families and
in both directions they pass its stateful firewall, in number, and every octet arrives as it was sent; also when a daemon that is
killed is followed by one with the other treatment, on the same connection, and without any where the kernel carries on."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import inspection
import tap
from stage import Stage

PORT, WANTED, PATIENCE = 7000, 20_000_000, 30
COUNTERS = ("TcpInErrs", "TcpInCsumErrors")


def errors(stage):
    """What the hosts' TCP has refused, by host and counter."""
    found = {}
    for host in ("c", "a", "b"):
        for line in stage.lab.run(host, "nstat", "-asz", *COUNTERS).stdout.splitlines():
            words = line.split()
            if words and words[0] in COUNTERS and int(words[1]):
                found[host, words[0]] = int(words[1])
    return found


def carried(case, stage, name, before, what):
    """Wait until both directions have carried enough since then."""
    deadline = time.monotonic() + PATIENCE
    gone = {}
    while time.monotonic() < deadline:
        now = stage.client.stats()[name]
        gone = {way: now[way] - before[way] for way in ("sent", "received")}
        if min(gone.values()) > WANTED:
            break
        time.sleep(0.1)
    case.ok(min(gone.values()) > WANTED, "both directions carry more than %d octets%s" % (WANTED, what),
            lambda: str(gone))
    case.equal(stage.client.stats()[name]["connections"], before["connections"], "on one connection" + what)


def written_by(case, stage, family, treatment, what):
    """Who writes the packets is what the setting says."""
    known = {name for name, _, _ in inspection.elements(stage.lab)}
    case.equal("endpoint_port%d" % family in known, treatment == "mark",
               "the kernel knows what to write for a mark, or need not" + what)


def carries(stage, family):
    """Whether user space judges the first packets of a connection and no more: with treatment `mark`, of IPv4."""
    return family == 4 and stage.daemon.settings.get("treatment", "mark") == "mark"


def one(case, stage, family, datapath):
    what = ", IPv%d, %s datapath" % (family, datapath)
    name = "s%d%s" % (family, datapath)
    stage.open(name, "bulk", PORT, family, timeout=30)
    answer, up, _ = stage.moved(name, "b", "--datapath", datapath)
    case.equal(answer.code, 0, "the session moves" + what)
    case.ok(up, "the client is served by B" + what)
    before = stage.client.stats()[name]
    octets = sum(queue["octets"] for queue in stage.daemon.counters())
    packets = sum(queue["packets"] for queue in stage.daemon.counters())
    carried(case, stage, name, before, what)
    if datapath == "queue":
        octets = sum(queue["octets"] for queue in stage.daemon.counters()) - octets
        packets = sum(queue["packets"] for queue in stage.daemon.counters()) - packets
        if carries(stage, family):
            case.ok(packets < 100, "the kernel carries the connection by itself" + what, lambda: "%d packets" % packets)
        else:
            # Else the case has not seen what it is about.
            case.ok(octets > 2000 * packets, "packets of many segments pass the queues" + what,
                    lambda: "%d octets in %d packets" % (octets, packets))
        at_first = stage.daemon.settings.get("treatment", "mark")
        written_by(case, stage, family, at_first, what)
        for treatment in ("rewrite" if at_first == "mark" else "mark", at_first):
            stage.daemon.kill()
            if carries(stage, family):
                carried(case, stage, name, dict(stage.client.stats()[name], connections=before["connections"]),
                        what + ", without a daemon")
            stage.daemon.settings["treatment"] = treatment
            stage.daemon.start()
            then = "%s, a new daemon with treatment %s" % (what, treatment)
            written_by(case, stage, family, treatment, then)
            carried(case, stage, name, dict(stage.client.stats()[name], connections=before["connections"]), then)
    stage.migrate(name, "return")
    stage.client.close(name)


def body(case):
    with Stage([PORT], lab={"offloads": True}) as stage:
        for datapath in ("kernel", "queue"):
            for family in (4, 6):
                one(case, stage, family, datapath)
        case.equal(errors(stage), {}, "no host has refused a segment for its checksum")
        stage.healthy(case)
        stage.clean(case)


if __name__ == "__main__":
    tap.main(body)
