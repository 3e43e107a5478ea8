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
from inspection import conntrack, elements
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


def one(case, stage, scope, port, sport):
    what = "scope " + scope
    stage.open(scope, "idle", port, sport=sport, scope=scope)
    answer, up, _ = stage.moved(scope, "b", "--datapath", "queue")
    case.ok(answer.code == DONE and bool(up), what + ": A → B", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
    case.ok(stage.client.works(scope), what + ": the session works on B")
    # Else the case has not seen what it is about.
    names = {name for name, _, _ in elements(stage.lab)}
    case.equal("carried4" in names, stage.daemon.settings.get("treatment", "mark") == "mark",
               what + ": the kernel carries the connection by itself, or user space does")
    stage.lab.run("g", "conntrack", "-D", "-p", "tcp", "--dport", str(port), check=False)
    case.equal([entry.line for entry in conntrack(stage.lab) if entry.original[3] == port], [], what + ": conntrack knows nothing")
    answer, mark = stage.migrate(scope, "d", "--datapath", "queue", timeout=20, wait=False)
    case.ok(answer.code == DONE, what + ": B → D is asked for", lambda: str(answer))
    case.ok(switched(stage, scope), what + ": D serves the session", stage.daemon.tail)
    stage.client.order(do="ping", id=scope)
    up = stage.client.await_up(scope, "D", mark, 3)
    case.ok(bool(up), what + ": with its first segment the client is on D",
            lambda: "%s\n%s" % (stage.client.stats()[scope], stage.daemon.tail()))
    case.ok(stage.client.works(scope), what + ": and works")
    stage.migrate(scope, "return")
    stage.client.close(scope)


def body(case):
    # Without a stateful firewall: that would stop a segment of which conntrack knows nothing.
    with Stage([PORT, OTHER], lab={"firewall": False}) as stage:
        for scope, port, sport in (("client", PORT, 0), ("connection", OTHER, 20001), ("service", PORT, 0)):
            one(case, stage, scope, port, sport)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
