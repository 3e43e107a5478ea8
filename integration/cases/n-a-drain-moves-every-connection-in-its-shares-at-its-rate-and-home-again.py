#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Very many connections leave A for B and D in shares 3:1, none is lost, and all come home; a rate is kept."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack
from lab import address, endpoint
from many import CrowdOf, histogram
from stage import Stage

PORT = 7000


def drained(case, stage, crowd, what, shares, *words):
    """Drain and assert that nobody is lost; the history of the crowd meanwhile."""
    crowd.history()
    answer = stage.daemon.ctl("drain", *words, "--json", timeout=400)
    took = answer.ended - answer.started
    report = answer.json or {}
    case.ok(answer.code == 0 and report.get("outcome") == "completed", what + ": completed and proven",
            lambda: "exit %d, %s %s" % (answer.code, {key: report.get(key) for key in report if key != "sessions"},
                                        answer.err))
    wanted = sum(shares.values())
    case.equal([report.get(name) for name in ("total", "moved", "gone", "failed", "waiting")],
               [wanted, wanted, 0, 0, 0], what + ": every session has moved")
    state = crowd.settled()
    case.equal(state["waiting"], 0, what + ": no connection is lost")
    history = crowd.history()
    case.equal(len(history["downs"]), wanted, what + ": each was reset once")
    case.equal([history["refused"], history["corrupt"]], [0, 0], what + ": none was refused, no octet is wrong")
    case.note("%s: %d sessions in %.2f s, %.0f a second; connections now: %s" % (
        what, wanted, took, wanted / took, state["up"]))
    case.note("from the break to the first octet of the new host:\n" + histogram(history["gaps"]))
    if history["silences"]:
        case.note("of connections that ask every 50 ms, from answer to answer:\n" + histogram(history["silences"]))
    return state["up"], history, took


def body(case):
    count, rate = (10_000, 500) if case.full else (500, 100)
    with Stage([PORT]) as stage:
        crowd = CrowdOf(stage.lab, count, PORT, busy=100 if case.full else 50)
        up = crowd.settled(60)["up"]
        case.equal(up, {"A": count}, "%d connections are on A" % count)
        a, b, d = (address(host) for host in "abd")

        dry = stage.daemon.ctl("drain", a, "--to", b + "=3", "--to", d, "--dry-run", "--json")
        case.equal([len(dry["sessions"] or []), [host["sessions"] for host in dry["to"]]],
                   [count, [count * 3 // 4, count // 4]], "a dry run says which sessions would go where")
        case.equal(crowd.history()["downs"], [], "and moves none")

        up, _, _ = drained(case, stage, crowd, "A to B and D", {"B": count}, a, "--to", b + "=3", "--to", d + "=1")
        case.ok(abs(up.get("B", 0) - count * 0.75) <= 0.02 * count and up.get("B", 0) + up.get("D", 0) == count,
                "the shares are 3:1 within 2 %", up)
        drained(case, stage, crowd, "B home", {"A": up["B"]}, b, "--to", "home")
        state, _, _ = drained(case, stage, crowd, "D home", {"A": up["D"]}, d, "--to", "home")
        case.equal(state, {"A": count}, "all are home")

        _, history, _ = drained(case, stage, crowd, "at %d a second" % rate, {"B": count}, endpoint(a, PORT), "--to", b,
                                "--rate", str(rate))
        downs = sorted(history["downs"])
        # Without the first and the last second, which are no whole ones.
        measured = (len(downs) - 1) / (downs[-1] - downs[0])
        worst = max(sum(1 for other in downs if start <= other < start + 1) for start in downs[::rate // 10])
        case.note("rate over all %.1f a second; the most within one second %d" % (measured, worst))
        case.ok(abs(measured - rate) <= 0.05 * rate, "--rate %d holds within 5 %%" % rate, "%.1f" % measured)
        case.ok(worst <= 1.25 * rate, "and no second has many more", worst)
        state, _, _ = drained(case, stage, crowd, "home again", {"A": count}, b, "--to", "home")
        case.equal(state, {"A": count}, "all are home again")

        sessions = stage.daemon.ctl("drain", a, "--to", b, "--at-most", "7", "--client", "198.18.1.103/32", "--json")
        case.equal([sessions.code, sessions["moved"]], [0, 7], "at most 7 sessions of one client")
        moved = [each for each in conntrack(stage.lab) if each.reply[0] == b and each.state == "ESTABLISHED"]
        case.equal([len(moved), {each.original[0] for each in moved}], [7, {"198.18.1.103"}], "are those on B")
        for order in ("oldest", "busiest"):
            refused = stage.daemon.ctl("drain", a, "--to", b, "--order", order)
            case.ok(refused.code == 1 and "nf_conntrack_" in refused.err, "an order that cannot be had is refused: "
                    + order, refused.err)
        back = stage.daemon.ctl("drain", b, "--to", "home", "--json")
        case.equal([back.code, back["moved"]], [0, 7], "and are sent home")
        crowd.settled()
        crowd.close()
        time.sleep(0.5)
        stage.clean(case, patience=15)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
