#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon that is killed or stopped in the middle of a drain, again and again: the next one goes on with it, under its
number, at its rate, paused if it was paused, with what has moved where it is. A canary settles anew and is judged then."""

import json
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from lab import address
from many import CrowdOf
from product import DONE, UNPROVEN
from stage import Stage

PORT, RATE = 7000, 100


def report(stage, number):
    return next(each for each in stage.daemon.ctl("drains", "--json")["drains"] if each["id"] == number)


def begin(stage, *words):
    return stage.daemon.ctl("drain", *words, "--no-wait", "--json")["id"]


def until(stage, number, holds, patience=60):
    """The drain's report once that holds, or after so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        now = report(stage, number)
        if holds(now) or now.get("outcome") or time.monotonic() > deadline:
            return now
        time.sleep(0.05)


def killed(case, stage, crowd, count):
    """SIGKILL, and every third time SIGTERM, at any moment; who has moved stays, nobody is lost, nobody is moved twice."""
    rng, kills = random.Random(7), 8 if case.full else 4
    crowd.history()
    number = begin(stage, address("a"), "--to", address("b") + "=3", "--to", address("d"), "--rate", str(RATE))
    moved, dead = [], []
    for turn in range(1, kills + 1):
        before = until(stage, number, lambda now: now["moved"] >= turn * count // (kills + 2))
        time.sleep(rng.uniform(0, 0.05))
        if turn % 3 == 0:
            stage.daemon.stop()
        else:
            stage.daemon.kill()
        died = time.monotonic()
        stage.daemon.start()
        dead.append((died, time.monotonic()))
        after = report(stage, number)
        moved.append((before["moved"], after["moved"], after["inFlight"]))
        if not (after["moved"] + after["inFlight"] >= before["moved"] and after["total"] == count
                and not after.get("outcome")):
            case.ok(False, "the next daemon knows the drain", json.dumps([before, after]))
    case.ok(len(moved) == kills and moved[-1][0] < count, "the daemon is killed %d times mid-drain" % kills, str(moved))
    case.note("moved before and after, and under way after each kill: %s" % moved)
    done = until(stage, number, lambda now: False)
    case.equal([done.get("outcome"), done["moved"], done["gone"], done["failed"], done["waiting"]],
               ["completed", count, 0, 0, 0], "the drain ends as if nothing had been, under its number")
    state = crowd.settled()
    case.equal([state["waiting"], state["up"]], [0, {"B": count * 3 // 4, "D": count // 4}],
               "no connection is lost, and the shares are exact")
    case.equal([host["sessions"] for host in done["to"]], [count * 3 // 4, count // 4], "and the report has them")
    history = crowd.history()
    case.equal([history["refused"], history["corrupt"]], [0, 0], "none was refused, no octet is wrong")
    downs = sorted(history["downs"])
    case.equal([len(downs), len(set(history["connections"]))], [count, count], "each connection broke once")
    # Between the starts, apart from those that were under way when the daemon died.
    starts = [start for _, start in dead]
    worst = max(sum(first <= each < first + 1 for each in downs) for first in downs
                if not any(first < start + 0.5 and first + 1 > died for died, start in dead))
    case.ok(worst <= 1.25 * RATE, "the rate is kept after %d starts" % len(starts), worst)


def stopped(case, stage, crowd, count):
    """SIGTERM while it is paused, and on its way home."""
    number = begin(stage, address("b"), "--to", "home", "--rate", str(RATE))
    until(stage, number, lambda now: now["moved"] >= 20)
    stage.daemon.ctl("pause", number)
    before = until(stage, number, lambda now: not now["inFlight"])
    stage.daemon.stop()
    stage.daemon.start()
    time.sleep(1.5)
    after = report(stage, number)
    case.equal([after["isPaused"], after["moved"], after["inFlight"]], [True, before["moved"], 0],
               "a drain that was paused is paused after an orderly restart too")
    stage.daemon.ctl("resume", number)
    done = until(stage, number, lambda now: False)
    case.equal([done.get("outcome"), done["moved"], done["failed"]], ["completed", before["total"], 0],
               "and goes on when it may")
    number = begin(stage, address("d"), "--to", "home", "--rate", "20")
    until(stage, number, lambda now: now["moved"] >= 5)
    stage.daemon.ctl("cancel", number)
    stage.daemon.kill()
    stage.daemon.start()
    done = until(stage, number, lambda now: False, 10)
    case.ok(done.get("outcome") == "cancelled" and done["waiting"] > 0, "one that was cancelled ends", json.dumps(done))
    stage.daemon.ctl("drain", address("d"), "--to", "home")
    case.equal(crowd.settled()["up"], {"A": count}, "all are home")


def followed(case, stage, crowd, count):
    """Whoever waits for the drain's outcome gets it, with one daemon or another."""
    for turn, (source, to) in enumerate((("a", address("b")), ("b", "home"))):
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(stage.daemon.ctl(
            "drain", address(source), "--to", to, "--rate", str(count // 4), "--json")))
        waiting.start()
        time.sleep(1.5)
        if turn:
            stage.daemon.stop()
        else:
            stage.daemon.kill()
        time.sleep(0.5)
        stage.daemon.start()
        waiting.join()
        what = "nfqmigctl waits through the daemon's %s" % ("stop" if turn else "death")
        case.equal([answers[0]["outcome"], answers[0]["moved"], crowd.settled()["up"]],
                   ["completed", count, {"A" if turn else "B": count}], what)
        # What the from-host had answered just before the daemon was killed nobody knows.
        case.ok(answers[0].code == DONE or not turn and answers[0].code == UNPROVEN and answers[0]["unproven"] < 200,
                what + ", and says whether all is proven", lambda: str(answers[0]))


def canaries(case, stage, crowd, count):
    share = count // 20
    number = begin(stage, address("a"), "--to", address("b"), "--canary", "5%", "--settle", "3")
    until(stage, number, lambda now: now["state"] == "settling")
    stage.daemon.kill()
    stage.daemon.start()
    began = time.monotonic()
    now = until(stage, number, lambda now: now["moved"] > share)
    case.ok(time.monotonic() - began > 2.5, "a canary that was settling settles anew",
            "%.1f s %s" % (time.monotonic() - began, json.dumps(now)))
    done = until(stage, number, lambda now: False)
    case.equal([done.get("outcome"), done["moved"], done["canary"]], ["completed", count, share],
               "then the rest follows")
    stage.daemon.ctl("drain", address("b"), "--to", "home")

    crowd.settled()
    number = begin(stage, address("a"), "--to", address("d"), "--canary", "5%", "--rate", "20", "--settle", "4")
    until(stage, number, lambda now: now["moved"] >= share // 2)
    stage.daemon.kill()
    stage.daemon.start()
    now = until(stage, number, lambda now: now["state"] == "settling")
    case.equal([now["state"], now["moved"]], ["settling", share], "one that was moving goes on, and no further")
    # Its host goes down: those that moved under the first daemon go back as well.
    stage.servers.each["d"].process.kill()
    done = until(stage, number, lambda now: False)
    case.equal([done.get("outcome"), done["moved"], done["returned"], done["waiting"]],
               ["failed", share, share, count - share], "a canary that fails after the restart goes back whole")
    case.note(done.get("reason"))
    case.equal(crowd.settled()["up"], {"A": count}, "everybody is on A")


def body(case):
    count = 2000 if case.full else 400
    with Stage([PORT]) as stage:
        crowd = CrowdOf(stage.lab, count, PORT, busy=20)
        case.equal(crowd.settled(60)["up"], {"A": count}, "%d connections are on A" % count)
        killed(case, stage, crowd, count)
        stopped(case, stage, crowd, count)
        followed(case, stage, crowd, count)
        canaries(case, stage, crowd, count)
        before = stage.daemon.ctl("drains", "--json")["drains"]
        stage.daemon.stop()
        stage.daemon.start()
        case.equal(stage.daemon.ctl("drains", "--json")["drains"], before, "the reports of ended drains stay")
        case.ok(stage.daemon.migrate(address("c"), "198.18.2.2:7000", address("b"))["id"] not in
                [each["id"] for each in before], "and their numbers are not given out again")
        crowd.close()
        time.sleep(0.5)
        stage.clean(case, patience=15)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
