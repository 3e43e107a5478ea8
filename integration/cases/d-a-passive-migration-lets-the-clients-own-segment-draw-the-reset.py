#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""In passive mode the client is left alone until it speaks: its next segment is shown to the to-host, whose own RST
reaches the client in home's name, and the client reconnects to the to-host. Both datapaths."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from capture import RST, SYN, Capture
from lab import address
from stage import Stage, captures

PORT = 7000


def one(case, mode, family, datapath, fixed):
    what = "%s, IPv%d, %s datapath, %s port" % (mode, family, datapath, "same" if fixed else "new")
    client, b = address("c", family), address("b", family)
    with Stage([PORT]) as stage:
        home = stage.lab.home(family)
        at_client, at_b = Capture(stage.lab, "c"), Capture(stage.lab, "b")
        with captures(at_client, at_b):
            old = stage.open("s", mode, PORT, family, sport=20001 if fixed else 0, think=5)["sport"]
            stage.client.works("s")
            if mode == "idle":
                time.sleep(0.3)  # its last, delayed acknowledgement would be a word of the client's
            answer, mark = stage.migrate("s", "b", "--passive", "--datapath", datapath)
            case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": the from-host's reset is proven")
            if mode == "idle":
                # Nobody has told the client, and it has not spoken.
                time.sleep(1)
                case.equal(stage.client.seen("s", "down", mark=mark), [], what + ": a silent client is left alone")
                stage.client.order(do="ping", id="s")
            up = stage.client.await_up("s", "B", mark, 10)
            case.ok(bool(up), what + ": the client is served by B", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
            down = stage.client.seen("s", "down", mark=mark)
            case.equal([event["error"] for event in down], ["ECONNRESET"], what + ": it was reset, once")
            case.ok(bool(up) and stage.client.works("s"), what + ": the session works on B")
        switched = answer["switchedAt"] or 0
        drawn = [s for s in at_b.segments(source=b, sport=PORT, ttl=64) if s.flags & RST and s.at > switched]
        case.ok(bool(drawn), what + ": B has sent a RST of its own")
        shown = [s for s in at_b.segments(destination=b, dport=PORT)
                 if s.at > switched and not s.flags & (SYN | RST) and s.sport == old]
        case.ok(bool(shown) and bool(drawn) and shown[0].at < drawn[0].at and shown[0].ack == drawn[0].seq,
                what + ": at the number that the client's segment acknowledged",
                lambda: "\n".join(map(str, shown[:3] + drawn[:3])))
        resets = [s for s in at_client.segments(destination=client, dport=old) if s.flags & RST]
        case.ok(bool(resets) and {(s.source, s.sport) for s in resets} == {(home, PORT)},
                what + ": the client has received it in home's name", lambda: "\n".join(map(str, resets)))
        case.ok(bool(resets) and bool(drawn) and resets[0].seq == drawn[0].seq and resets[0].at > drawn[0].at,
                what + ": and it is B's", lambda: "\n".join(map(str, resets[:3] + drawn[:3])))
        silent = [s for s in at_client.segments(destination=client, dport=old)
                  if switched + 0.001 < s.at and drawn and s.at < drawn[0].at]
        case.equal([str(s) for s in silent], [], what + ": nothing had reached it before")
        case.equal([str(s) for s in at_client.segments() + at_b.segments() if not s.good], [],
                   what + ": every checksum is right")
        case.equal(at_client.bad_checksums() + at_b.bad_checksums(), [], what + ": and so says tshark")
        again, up, _ = stage.moved("s", "return", patience=10)
        case.ok(again.code == 0 and bool(up), what + ": and home again", lambda: str(again))
        stage.clean(case, ": " + what)
        stage.healthy(case)


def body(case):
    for datapath in ("kernel", "queue"):
        one(case, "rr", 4, datapath, fixed=True)
        one(case, "rr", 6, datapath, fixed=False)
        one(case, "idle", 4, datapath, fixed=False)
        if case.full:
            one(case, "rr", 4, datapath, fixed=False)
            one(case, "rr", 6, datapath, fixed=True)
            one(case, "bulk", 4, datapath, fixed=True)
            one(case, "idle", 6, datapath, fixed=True)


if __name__ == "__main__":
    tap.main(body)
