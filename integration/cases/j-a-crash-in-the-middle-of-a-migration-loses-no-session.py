#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon is killed in the middle of a migration, at many different moments, and restarted: the session ends up on
the from-host or on the to-host, works, can be migrated again, and nothing is left behind."""

import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack
from stage import Stage

PORT = 7000


def one(case, stage, name, mode, datapath, fixed, delay):
    """Kill so many milliseconds after the command's start, or right after its end (None)."""
    what = "%s, %s datapath, %s port, killed %s" % (
        mode, datapath, "same" if fixed else "new",
        "right after the command" if delay is None else "%g ms after its start" % delay)
    stage.open(name, mode, stage.ports[0], sport=20001 if fixed else 0, think=2, rate=5000000)
    mark = stage.client.mark()
    if delay is None:
        stage.migrate(name, "b", "--datapath", datapath, wait=False)
    else:
        command = threading.Thread(target=stage.migrate, args=(name, "b", "--datapath", datapath),
                                   kwargs={"wait": False})
        command.start()
        time.sleep(delay / 1e3)
    stage.daemon.kill()
    if delay is not None:
        command.join()
    time.sleep(0.2)
    stage.daemon.start()
    deadline, works = time.monotonic() + 15, False
    while time.monotonic() < deadline and not works:
        works = stage.client.works(name, 1)
    server = stage.client.stats()[name]["server"]
    listed = [session["host"] for session in stage.daemon.sessions() or ()]
    case.ok(works and server in ("A", "B"), "%s: the session works, on %s" % (what, server),
            lambda: "%s\n%s\n%s" % (stage.client.stats(), listed, stage.daemon.tail()))
    case.equal(stage.client.seen(name, "refused", "failed", mark=mark), [], what + ": the client was never refused")
    known = stage.host(name, server.lower()) if server else ""
    case.ok(bool(works) and (any(known in host for host in listed) or (server == "A" and not listed)),
            what + ": the daemon knows where it is", lambda: str(listed))
    # Once more, to somewhere else, undisturbed.
    answer, up, _ = stage.moved(name, "d", "--datapath", datapath, patience=10)
    case.ok(answer.code == 0 and bool(up) and stage.client.works(name), what + ": it can be migrated again",
            lambda: "%s\n%s" % (answer, stage.daemon.tail()))
    answer, up, _ = stage.moved(name, "return", patience=10)
    case.ok(answer.code == 0 and bool(up), what + ": and taken home", lambda: str(answer))
    stage.client.close(name)
    return server


def round_trip(case, datapath):
    """Three migrations still stand when the daemon is killed, and the first went to the host that now serves: the new daemon, which
    makes sure of what each has left to do, must not take the connection of today for the one that was moved away."""
    what = "there and back and there, %s datapath" % datapath
    with Stage([PORT]) as stage:
        for name, sport in (("fixed", 20003), ("new", 0)):
            stage.open(name, "rr", PORT, sport=sport, scope="client", think=20)
        for letter in ("b", "return", "b"):
            options = () if letter == "return" else ("--datapath", datapath)
            answer, up, _ = stage.moved("fixed", letter, *options)
            case.ok(answer.code == 0 and bool(up), "%s: %s" % (what, letter), lambda: str(answer))
        case.ok(stage.client.works("fixed") and stage.client.works("new"), what + ": both connections work on B")
        before = {name: (each["server"], each["connections"]) for name, each in stage.client.stats().items()}
        case.equal({server for server, _ in before.values()}, {"B"}, what + ": and are there")
        tracked = {entry.original for entry in conntrack(stage.lab) if entry.state == "ESTABLISHED"}
        stage.daemon.kill()
        stage.daemon.start()
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            works = stage.client.works("fixed"), stage.client.works("new")
            if works != (True, True):
                break
            time.sleep(0.2)
        case.ok(works == (True, True), what + ": both work with the new daemon", stage.daemon.tail)
        after = {name: (each["server"], each["connections"]) for name, each in stage.client.stats().items()}
        case.equal(after, before, what + ": on the connections that they had")
        now = {entry.original for entry in conntrack(stage.lab) if entry.state == "ESTABLISHED"}
        case.ok(tracked and tracked <= now, what + ": which conntrack has known all the time",
                lambda: "%s\n%s" % (sorted(tracked), sorted(now)))
        stage.healthy(case)


def body(case):
    for datapath in ("kernel", "queue"):
        round_trip(case, datapath)
    delays = [None, 0, 5, 10, 20, 40, 80] if not case.full else [None] * 5 + [2 * step for step in range(50)]
    ends = []
    with Stage([PORT]) as stage:
        for index, delay in enumerate(delays):
            mode = ("rr", "idle", "bulk")[index % 3]
            datapath = ("kernel", "queue")[index // 2 % 2]
            ends.append(one(case, stage, "s%d" % index, mode, datapath, index % 2 == 0, delay))
        stage.clean(case)
        stage.healthy(case)
    case.note("the sessions were found on: " + " ".join(str(end) for end in ends))


if __name__ == "__main__":
    tap.main(body)
