#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The from-host is dead before the command: the client is reset all the same and works on the to-host, exit code 4.
When the from-host comes back, the gateway resets its stale connection; the client sees none of its segments."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from capture import RST, Capture
from inspection import elements, sockets
from lab import address
from product import UNPROVEN
from stage import Stage, captures

PORT = 7000


def one(case, family, datapath, fixed):
    what = "IPv%d, %s datapath, %s port" % (family, datapath, "same" if fixed else "new")
    client, home = address("c", family), address("a", family)
    with Stage([PORT]) as stage:
        # A's cable is watched from the gateway's end, which is up while A's is not.
        at_client, at_home = Capture(stage.lab, "c"), Capture(stage.lab, "g", device="to-a")
        with captures(at_client):
            # Ticks: A always has something to send, so that it has unsent data when its cable is pulled.
            old = stage.open("s", "tick", PORT, family, sport=20001 if fixed else 0, think=20)["sport"]
            stage.client.works("s")
            stage.lab.set_link("a", False)
            time.sleep(0.3)
            answer, up, mark = stage.moved("s", "b", "--datapath", datapath, patience=10, timeout=60)
            case.equal(answer.code, UNPROVEN, what + ": exit code 4")
            case.equal(answer["outcome"], "unproven", what + ": the outcome is unproven")
            case.ok(bool(up), what + ": the client is served by B", lambda: str(answer))
            case.equal([event["error"] for event in stage.client.seen("s", "down", mark=mark)], ["ECONNRESET"],
                       what + ": it was reset exactly once")
            if up:
                case.note("%s: request to first byte %.2f ms" % (what, (up["t"] - answer.requested) * 1e3))
            case.ok(bool(up) and stage.client.works("s"), what + ": the session works on B")
            stuck = [s for s in sockets(stage.lab, "a") if s[3] == client and s[0] == "ESTAB"]
            case.equal(len(stuck), 1, what + ": A still holds its end")
            standing = [each for each in elements(stage.lab) if str(old) in each[1] and (each[2] or 0) > 3600]
            case.ok(bool(standing), what + ": the guard stands for more than an hour",
                    lambda: "\n".join(map(str, elements(stage.lab))))
            back = time.time()
            with captures(at_home):
                stage.lab.set_link("a", True)
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline and [s for s in sockets(stage.lab, "a") if s[3] == client]:
                    time.sleep(0.1)
                gone = [s for s in sockets(stage.lab, "a") if s[3] == client] == []
                case.ok(gone, what + ": A's stale connection is reset when A returns",
                        lambda: "\n".join(str(s) for s in at_home.segments()[:20]))
                case.note("%s: %.1f s after its return" % (what, time.time() - back))
            case.ok(stage.client.works("s"), what + ": the session on B goes on meanwhile")
            case.equal(len(stage.client.seen("s", "down", mark=mark)), 1, what + ": the client was not disturbed again")
        stale = at_home.segments(source=home, sport=PORT, dport=old)
        case.ok(any(s.length for s in stale), what + ": A had data to retransmit")
        answered = [s for s in at_home.segments(destination=home, dport=PORT) if s.flags & RST]
        case.ok(bool(answered), what + ": the gateway answered it with a RST")
        leaked = [s for s in at_client.segments(destination=client, dport=old)
                  if any(s.same(one) and s.at >= one.at for one in stale)]
        case.equal([str(s) for s in leaked], [], what + ": none of A's stale segments reached the client")
        case.equal([str(s) for s in at_client.segments() + at_home.segments() if not s.good], [],
                   what + ": every checksum is right")
        again, up, _ = stage.moved("s", "return", patience=10)
        case.ok(again.code == 0 and bool(up), what + ": the session can go home again", lambda: str(again))
        stage.healthy(case)


def body(case):
    one(case, 4, "kernel", fixed=True)
    one(case, 6, "queue", fixed=True)
    one(case, 4, "queue", fixed=False)
    if case.full:
        one(case, 6, "kernel", fixed=False)
        one(case, 4, "queue", fixed=True)
        one(case, 4, "kernel", fixed=False)


if __name__ == "__main__":
    tap.main(body)
