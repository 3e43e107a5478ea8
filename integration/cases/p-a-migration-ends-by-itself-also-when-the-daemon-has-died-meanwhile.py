#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A migration with a lifetime ends by itself, home or on to the next host; one that has to be confirmed goes home unless
it is; both in time, also when the daemon was killed meanwhile; and a later migration of the session cancels them."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from lab import address
from product import DONE, FAILED, UNKNOWN, USAGE
from stage import Stage

PORT = 7000


def arrives(case, stage, what, server, began, seconds, mark, slack=1.0):
    """The client is served by `server` so many seconds after `began`, within the slack."""
    up = stage.client.await_up("s", server, mark, max(0.1, began + seconds + 5 - time.monotonic()))
    late = up["t"] - began - seconds if up else None
    case.ok(up and -0.2 < late < slack, "%s: on %s after %g s" % (what, server, seconds), "%s s late" % late)
    if up:
        case.note("%s: %.3f s late" % (what, late))


def moved(case, stage, what, to, *words):
    answer, up, _ = stage.moved("s", to, *words)
    case.ok(answer.code == DONE and bool(up), what + ": moved", lambda: str(answer))
    # The switch is what the times count from.
    return answer, answer.requested + (answer["switchedAt"] - answer["requestedAt"]), stage.client.mark()


def steps(stage, number):
    report = stage.daemon.ctl("show", number, "--json")
    return [(step["step"], step.get("detail", "")) for step in report["timeline"] or ()]


def lifetimes(case, stage):
    answer, began, mark = moved(case, stage, "--for 2s", "b", "--for", "2s")
    case.ok(abs(answer["endsAt"] - answer["switchedAt"] - 2) < 0.1, "the report says when it ends", str(answer))
    arrives(case, stage, "--for 2s", "A", began, 2, mark)
    case.ok(any(step == "lifetime ended" and "home" in detail for step, detail in steps(stage, answer["id"])),
            "the timeline says that it has ended", lambda: str(steps(stage, answer["id"])))
    case.ok(any(step == "cause" for step, _ in steps(stage, answer["id"] + 1)), "and the next one's says why it began")
    _, began, mark = moved(case, stage, "--for 2s --then D", "b", "--for", "2s", "--then", address("d"))
    arrives(case, stage, "--for 2s --then D", "D", began, 2, mark)
    time.sleep(2.5)
    case.equal(stage.client.stats()["s"]["server"], "D", "there it stays")
    stage.moved("s", "return")
    # The next host does not listen: home.
    _, began, mark = moved(case, stage, "--then a dead host", "b", "--for", "1s", "--then", "198.18.4.2:9")
    arrives(case, stage, "--then a dead host", "A", began, 1, mark, slack=2.5)


def cancelled(case, stage):
    moved(case, stage, "--for 2s", "b", "--for", "2s")
    answer, _, mark = moved(case, stage, "and at once on to D", "d")
    time.sleep(3)
    case.equal(stage.client.seen("s", "down", mark=mark), [], "a later migration cancels the lifetime")
    case.equal(stage.client.stats()["s"]["server"], "D", "the session is where the later one took it")
    # Refused, it cancels nothing.
    _, began, mark = moved(case, stage, "--for 2s", "b", "--for", "2s")
    refusal = stage.daemon.migrate(stage.who("s"), stage.home("s"), "198.18.4.2:9")
    case.equal(refusal.code, FAILED, "a later one that fails")
    arrives(case, stage, "cancels nothing", "A", began, 2, mark)


def confirmed(case, stage):
    _, began, mark = moved(case, stage, "--confirm-within 2s", "b", "--confirm-within", "2s")
    arrives(case, stage, "not confirmed", "A", began, 2, mark)
    answer, _, mark = moved(case, stage, "--confirm-within 2s", "b", "--confirm-within", "2s")
    case.equal(stage.daemon.ctl("confirm", answer["id"]).code, DONE, "it is confirmed")
    time.sleep(2.5)
    case.equal(stage.client.seen("s", "down", mark=mark), [], "and stays")
    again = stage.daemon.ctl("confirm", answer["id"])
    case.ok(again.code == FAILED and "does not wait to be confirmed" in again.err, "once only", lambda: str(again))
    case.equal(stage.daemon.ctl("confirm", 987654).code, UNKNOWN, "an unknown one is unknown")
    stage.moved("s", "return")
    for words in (("--then", address("d")), ("--for", "0s"), ("--for", "soon"), ("--confirm-within", "2000d"),
                  ("--for", "1s", "--then", address("b"))):
        refusal = stage.daemon.migrate(stage.who("s"), stage.home("s"), address("b"), *words)
        case.equal(refusal.code, USAGE, "refused: " + " ".join(words))


def survives(case, stage, datapath):
    # Killed and started again before the end.
    _, began, mark = moved(case, stage, "%s, killed" % datapath, "b", "--for", "4s", "--datapath", datapath)
    stage.daemon.kill()
    stage.daemon.start()
    case.ok(stage.client.works("s"), datapath + ": the session is on B when the daemon is there again")
    arrives(case, stage, datapath + ", killed and started again", "A", began, 4, mark)
    # Dead when the time comes.
    answer, began, mark = moved(case, stage, datapath, "b", "--confirm-within", "1s", "--datapath", datapath)
    stage.daemon.kill()
    time.sleep(max(0, began + 3 - time.monotonic()))
    case.equal(stage.client.seen("s", "down", mark=mark), [], datapath + ": a dead daemon ends nothing")
    started = time.monotonic()
    stage.daemon.start()
    arrives(case, stage, datapath + ", dead when the time came", "A", started, 0, mark, slack=3)
    # Confirmed with the next daemon.
    answer, _, mark = moved(case, stage, datapath, "b", "--confirm-within", "5s", "--datapath", datapath)
    stage.daemon.kill()
    stage.daemon.start()
    case.equal(stage.daemon.ctl("confirm", answer["id"]).code, DONE, datapath + ": the next daemon takes the confirmation")
    time.sleep(5)
    case.equal(stage.client.seen("s", "down", mark=mark), [], datapath + ": and it stays")
    # Cancelled, and then killed: it stays cancelled.
    moved(case, stage, datapath, "d", "--for", "3s", "--datapath", datapath)
    answer, _, mark = moved(case, stage, datapath, "b", "--datapath", datapath)
    stage.daemon.kill()
    stage.daemon.start()
    time.sleep(3.5)
    case.equal(stage.client.seen("s", "down", mark=mark), [], datapath + ": what was cancelled stays so over a restart")
    case.equal(stage.moved("s", "return")[0].code, DONE, datapath + ": home again")


def body(case):
    with Stage([PORT]) as stage:
        stage.open("s", "rr", PORT, sport=20001, think=5)
        lifetimes(case, stage)
        cancelled(case, stage)
        confirmed(case, stage)
        for datapath in ("kernel", "queue") if case.full else ("kernel",):
            survives(case, stage, datapath)
        stage.clean(case)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
