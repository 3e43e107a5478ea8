#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client cannot be reached during the migration: the from-host is reset all the same, the command comes to its end,
and when the client is back, its next segment is answered with a reset and it reconnects to the to-host."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import sockets
from lab import address
from stage import Stage

PORT = 7000


def one(case, family, datapath, fixed, seconds):
    what = "IPv%d, %s datapath, %s port" % (family, datapath, "same" if fixed else "new")
    with Stage([PORT], guard_client=60) as stage:
        stage.open("s", "rr", PORT, family, sport=20001 if fixed else 0, think=10)
        stage.client.works("s")
        stage.lab.set_link("c", False)
        time.sleep(0.3)
        answer, mark = stage.migrate("s", "b", "--datapath", datapath)
        case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": the outcome is proven")
        case.ok(answer.ended - answer.started < 10, what + ": within ten seconds", lambda: str(answer))
        left = [s for s in sockets(stage.lab, "a") if s[3] == address("c", family)]
        case.equal(left, [], what + ": A has no socket of the session")
        time.sleep(seconds)
        case.equal(stage.client.seen("s", "down", "up", mark=mark), [], what + ": the client knows of nothing")
        stage.lab.set_link("c", True)
        up = stage.client.await_up("s", "B", mark, 30)
        case.ok(bool(up) and stage.client.works("s"), what + ": back again, it is served by B",
                lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        case.equal([event["error"] for event in stage.client.seen("s", "down", mark=mark)], ["ECONNRESET"],
                   what + ": it was reset, once")
        answer, up, _ = stage.moved("s", "return", patience=10)
        case.ok(answer.code == 0 and bool(up), what + ": the session can go home again", lambda: str(answer))
        stage.healthy(case)


def gone(case):
    """A client that has ended without a word: its connection is the host's and conntrack's only."""
    with Stage([PORT]) as stage:
        stage.open("s", "idle", PORT, sport=20001, scope="client")
        stage.open("t", "idle", PORT, sport=20002, scope="client")
        stage.lab.nft("c", "table inet mute {\nchain output {\ntype filter hook output priority 0;\n"
                           "tcp sport 20001 drop\n}\n}\n")
        stage.client.close("s")
        answer, up, _ = stage.moved("t", "b")
        case.equal((answer.code, answer["outcome"]), (0, "proven"), "a client gone without a word: it is proven")
        case.ok(bool(up), "its other connection is served by B", lambda: str(answer))
        answer, up, _ = stage.moved("t", "return")
        case.ok(answer.code == 0 and bool(up), "and goes home again", lambda: str(answer))
        stage.client.close("t")
        stage.clean(case)
        stage.healthy(case)


def body(case):
    one(case, 4, "kernel", True, 1)
    one(case, 6, "queue", False, 1)
    gone(case)
    if case.full:
        one(case, 4, "queue", True, 20)
        one(case, 6, "kernel", False, 20)


if __name__ == "__main__":
    tap.main(body)
