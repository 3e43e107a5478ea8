#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab, its traffic and its captures by themselves, without the product: what measures must be measured first."""

import os
import subprocess
import sys
import time

import tap
from capture import RST, SYN, Capture, sums_to_zero
from inspection import conntrack, ruleset_of_others, sockets, stale_entries
from lab import HERE, Lab, address, run, sweep
from traffic import Client, Servers

PORT = 7000


def plain(case):
    with Lab() as lab:
        servers, client = Servers(lab, [PORT, PORT + 1]), Client(lab)
        with Capture(lab, "c") as at_client, Capture(lab, "a") as at_home:
            for family in (4, 6):
                for mode in ("rr", "idle", "bulk", "tick"):
                    name = "%s%d" % (mode, family)
                    up = client.open(name, mode, address("a", family), PORT, rate=2000000)
                    case.equal(up["server"], "A", "%s over IPv%d reaches A" % (mode, family))
                    case.ok(client.works(name), "%s over IPv%d carries data both ways" % (name, family))
                    if mode == "bulk":
                        client.close(name)
            client.open("fixed", "idle", address("a"), PORT + 1, sport=20001)
            floors = [client.cycle("fixed") for _ in range(20)]
            case.ok(all(floors), "a session reconnects from the same source port at once", floors)
            case.note("floor of a reconnect: median %.3f ms" % (sorted(floors)[10] * 1e3))
            case.equal(client.seen("fixed", "refused", "failed"), [], "no reconnect was refused")
            # A RST that does not come at the very number that conntrack expects leaves the entry ten more seconds.
            deadline = time.monotonic() + 12
            while stale_entries(lab) and time.monotonic() < deadline:
                time.sleep(0.25)
            entries = [entry for entry in conntrack(lab) if entry.state == "ESTABLISHED"]
            case.equal(len(entries), 7, "conntrack on the gateway follows the seven open connections")
            case.equal(stale_entries(lab), [], "each of them has its two sockets")
            lab.run("a", "ss", "-K", "dst", address("c"), "sport", "=", str(PORT + 1), check=False)
        case.ok(len(at_client.segments()) > 100, "the capture on the client has seen the traffic")
        case.equal([str(s) for s in at_client.segments() + at_home.segments() if not s.good], [],
                   "all checksums are right, says our own reader")
        case.equal(at_home.bad_checksums(), [], "and so says tshark")
        case.ok(at_home.verified_checksums() > 100, "tshark has verified checksums at all")
        case.equal({s.ttl for s in at_home.segments(source=address("c"))}, {63},
                   "forwarded segments arrive with TTL 63")
        case.ok(at_client.segments(flags=SYN) and at_client.segments(flags=RST | 16), "SYN and RST are recognised")
        case.ok(all(any(one.same(other) for other in at_home.segments(source=address("c"), dport=PORT + 1))
                    for one in at_client.segments(source=address("c"), dport=PORT + 1)),
                "each segment of the client is found again on A")
        pings = lab.run("a", "ping", "-c1", "-W1", address("c"), check=False).returncode
        case.equal(pings, 0, "the gateway's firewall lets echo requests pass")
        lab.set_host_firewalls(True)
        client.open("guarded", "rr", address("a"), PORT)
        case.ok(client.works("guarded"), "a connection through all firewalls works")
        lab.set_timestamps(False)
        client.open("plain", "rr", address("b"), PORT)
        options = lab.run("c", "ss", "-tinH", "dst", address("b")).stdout
        case.ok(" ts " not in options and "wscale" in options, "time stamps can be switched off", options)
        with Lab() as second:
            case.ok(second.prefix != lab.prefix, "a second lab runs beside the first")
        case.equal(servers.corrupt(), [], "no server has seen data that nobody sent")


def lossy(case):
    with Lab(loss=3) as lab:
        Servers(lab, [PORT])
        client = Client(lab)
        client.open("rr", "rr", address("a"), PORT, think=0, timeout=30)
        deadline = time.monotonic() + 20
        while client.stats()["rr"]["answers"] < 300 and time.monotonic() < deadline:
            time.sleep(0.1)
        case.ok(client.stats()["rr"]["answers"] >= 300, "300 requests are answered through 3 % loss at every hop")
        gap = client.stats()["rr"]["gap"]
        dropped = sum(int(line.split("packets ")[1].split()[0]) for host in "cga" for line in
                      lab.run(host, "nft", "list", "table", "netdev", "loss").stdout.splitlines() if "packets" in line)
        case.ok(dropped > 5, "segments were lost: %d (longest silence %.0f ms)" % (dropped, gap))


def translated(case):
    with Lab(vip=True) as lab:
        Servers(lab, [PORT])
        client = Client(lab)
        for family in (4, 6):
            name = "vip%d" % family
            client.open(name, "rr", lab.home(family), PORT)
            case.ok(client.works(name), "the virtual address is served by A over IPv%d" % family)
        peers = {socket[3] for socket in sockets(lab, "a")}
        case.equal(peers, {address("a", 4, 1), address("a", 6, 1)}, "A sees the gateway's masquerade only")
        before = ruleset_of_others(lab)
        lab.nft("g", "table inet nfqmigd {\nset x { type ipv4_addr; }\n}\n")
        case.equal(ruleset_of_others(lab), before, "a table of ours does not show in the ruleset of others")


def routed(case):
    with Lab(hops=("c", "b")) as lab:
        Servers(lab, [PORT])
        client = Client(lab)
        client.open("far", "rr", address("b"), PORT)
        case.ok(client.works("far"), "a connection through three routers works")


def dead_host(case):
    with Lab() as lab:
        Servers(lab, [PORT])
        client = Client(lab)
        for family in (4, 6):
            client.open("t%d" % family, "tick", address("a", family), PORT, think=20)
        lab.set_link("a", False)
        time.sleep(1)
        silent = client.stats()
        case.ok(all(each["silent"] > 0.5 for each in silent.values()), "with its cable pulled, A is silent")
        lab.set_link("a", True)
        case.ok(client.works("t4", 15) and client.works("t6", 15), "plugged again, its connections go on")


def swept(case):
    script = ("import sys, os, signal; sys.path.insert(0, %r); import lab\n"
              "with lab.Lab() as l: l.spawn('a', ['sleep', '99']); print(l.prefix, flush=True); signal.pause()\n")
    for number, left in ((15, 0), (9, 5)):
        child = subprocess.Popen([sys.executable, "-c", script % HERE], stdout=subprocess.PIPE, text=True)
        prefix = child.stdout.readline().strip()
        child.send_signal(number)
        child.wait()
        names = [name for name in os.listdir("/run/netns") if name.startswith(prefix + "-")]
        case.equal(len(names), left, "a lab ended by signal %d leaves %d namespaces" % (number, left))
        removed = sweep()
        case.ok(all(name in removed for name in names), "and sweep removes them", removed)
    case.equal(run(["ip", "netns", "list"]).stdout.count(prefix), 0, "nothing of it is left")


def checksums(case):
    header = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")
    case.ok(sums_to_zero(header), "a right checksum is recognised")
    case.ok(not sums_to_zero(header[:12] + b"\xc1" + header[13:]), "a wrong checksum is recognised")


def body(case):
    for part in (checksums, plain, lossy, translated, routed, dead_host, swept):
        part(case)


if __name__ == "__main__":
    tap.main(body, needs_product=False)
