#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody empties conntrack, so no migration can find a client's connection. What of it user space has judged before, and the
kernel carries on with by itself, ends with the change of host all the same: the client's next segment does not reach the
from-host any more, and the client is on the to-host at once. In every scope, whoever writes the packets."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack, elements, table_exists
from lab import address, endpoint
from product import DONE
from stage import Stage

PORT, OTHER = 7000, 7001


def switched(stage, name):
    """Wait until D is the host of a session."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        hosts = [session["host"] for session in stage.daemon.sessions() if session["home"] == stage.home(name)]
        if hosts and all(stage.host(name, "d") in host for host in hosts):
            return True
        time.sleep(0.02)
    return False


def explained(stage):
    """What is said of a segment of session s."""
    client = endpoint(address("c"), stage.sessions["s"]["sport"])
    return stage.daemon.ctl("explain", client + "," + stage.home("s"), "--json")["existingConnection"]


def one(case, scope):
    what = "scope " + scope
    # Without a stateful firewall: that would stop a segment of which conntrack knows nothing.
    with Stage([PORT, OTHER], lab={"firewall": False}) as stage:
        # Another session of the same home and host, which must notice nothing.
        for name, port, sport, scope_of_it in (("other", OTHER, 0, "client"), ("s", PORT, 20001, scope)):
            stage.open(name, "idle", port, sport=sport, scope=scope_of_it)
            answer, up, _ = stage.moved(name, "b", "--datapath", "queue")
            case.ok(answer.code == DONE and bool(up), "%s: %s is on B" % (what, name), lambda: "%s\n%s" % (answer, stage.daemon.tail()))
            case.ok(stage.client.works(name), "%s: %s works there" % (what, name))
        # Else the case has not seen what it is about.
        marks = stage.daemon.settings.get("treatment", "mark") == "mark"
        names = {name for name, _, _ in elements(stage.lab)}
        case.equal("carried4" in names, marks, what + ": the kernel carries the connections by itself, or user space does")
        case.equal("by itself" in explained(stage), marks, what + ": and the explanation says so")
        # The client acknowledges late what it has last been sent; from any segment conntrack learns the connection anew.
        time.sleep(0.4)
        stage.lab.run("g", "conntrack", "-D", "-p", "tcp", "--dport", str(PORT), check=False)
        known = [entry.line for entry in conntrack(stage.lab) if entry.original[3] == PORT]
        case.equal(known, [], what + ": conntrack knows nothing of it")
        answer, mark = stage.migrate("s", "d", "--datapath", "queue", timeout=20, wait=False)
        case.ok(answer.code == DONE, what + ": B → D is asked for", lambda: str(answer))
        case.ok(switched(stage, "s"), what + ": D serves the session", stage.daemon.tail)
        case.equal("by itself" in explained(stage), False, what + ": a queue thread judges the next segment")
        stage.client.order(do="ping", id="s")
        up = stage.client.await_up("s", "D", mark, 3)
        case.ok(bool(up), what + ": with its first segment the client is on D",
                lambda: "%s\n%s" % (stage.client.stats()["s"], stage.daemon.tail()))
        case.ok(stage.client.works("s"), what + ": and works")
        case.ok(stage.client.works("other") and stage.client.stats()["other"]["server"] == "B", what + ": the other one works on B")
        stage.healthy(case)


def tracked(case):
    """With the table goes the one rule that makes the kernel track connections here: also where nothing has moved yet it comes back."""
    with Stage([PORT], lab={"firewall": False}) as stage:
        stage.lab.run("g", "nft", "flush", "ruleset")
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not table_exists(stage.lab):
            time.sleep(0.05)
        stage.open("s", "idle", PORT, sport=20001)
        answer, up, _ = stage.moved("s", "b")
        case.ok(answer.code == DONE and bool(up), "after a flush of all rules connections are tracked and move",
                lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        stage.healthy(case)


def body(case):
    tracked(case)
    for scope in ("client", "connection", "service"):
        one(case, scope)


if __name__ == "__main__":
    tap.main(body)
