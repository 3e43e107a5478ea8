#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first share of a drain goes to a host that accepts connections and then resets them: it goes back by itself, the
rest never moves, and everybody is told why. A canary on a sound host lets the rest follow. A service's rate slows a drain
down, and a drain of one service leaves the others alone."""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack, sockets
from lab import LabError, address, endpoint
from many import ADDRESSES, CrowdOf
from product import EVERYTHING
from stage import Stage

PORT, TREACHEROUS, MUTE = 7000, 7999, 7998

# Accepts, and resets a moment later, or after the greeting has come.
TRAITOR = """
import socket, struct, sys, threading
def reset(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", int(sys.argv[1])))
listener.listen(4096)
print("ready", flush=True)
while True:
    peer = listener.accept()[0]
    if sys.argv[2] == "late":
        peer.recv(100)
        reset(peer)
    else:
        threading.Timer(0.03, reset, [peer]).start()
"""


def traitor(stage, host, port, when):
    child = stage.lab.spawn(host, [sys.executable, "-c", TRAITOR, str(port), when], stdout=-1)
    if child.stdout.readline() != b"ready\n":
        raise LabError("the server that resets did not start")
    return child


def refused_canary(case, stage, crowd, count, what, to, *more):
    """Drain with a canary of 5 % to a host that resets."""
    crowd.history()
    share = count // 20
    answer = stage.daemon.ctl("drain", address("a"), "--to", to, "--canary", "5%", "--json", *more)
    report = answer.json or {}
    case.equal([answer.code, report.get("outcome"), report.get("state")], [1, "failed", "finished"],
               what + ": the drain fails")
    case.ok(to in (report.get("reason") or "") and report["reason"].endswith("."),
            what + ": the reason names the host", report.get("reason"))
    case.note("%s: %s" % (what, report.get("reason")))
    case.ok(0 < report.get("moved", 0) <= share and report["waiting"] >= count - share,
            what + ": no more than the share was moved", json.dumps(report))
    case.equal(report.get("returned"), report.get("moved"), what + ": as many went back")
    state = crowd.settled()
    case.equal([state["up"], state["waiting"]], [{"A": count}, 0], what + ": every connection is on A")
    time.sleep(0.3)
    broken = len(set(crowd.history()["connections"]))
    case.ok(broken <= share, what + ": the rest never noticed", "%d connections broke" % broken)
    bound = [each for each in stage.daemon.sessions() if each["host"] != each["home"]]
    case.equal(bound, [], what + ": no binding is left")
    log = stage.daemon.tail(100000)
    case.ok("canary failed" in log and "returning" in log and "drain finished: failed" in log,
            what + ": the events say what happened", log[-2000:])
    case.equal([each.line for each in conntrack(stage.lab) if each.reply[1] == int(to.rsplit(":", 1)[1])
                and each.state == "ESTABLISHED"], [], what + ": no entry of that host is left")
    return report


def services(case, stage, crowd, count):
    """Two services with the same home, told apart by their clients; one of them has a rate."""
    rate = 50
    everything = {"homes": ["0.0.0.0/0:1-65535"], "hosts": ["0.0.0.0/0"]}
    few = ["198.18.1.%d" % number for number in range(101, 105)]
    stage.daemon.reload(service=[dict(everything, name="few", clients=[each + "/32" for each in few], rate=rate),
                                 dict(everything, name="rest")])
    share = count * len(few) // len(ADDRESSES)
    refused = stage.daemon.ctl("drain", "--service", "nobody", "--to", address("b"), "--json")
    case.ok(refused.code == 2 and '"nobody"' in refused.err and '"few"' in refused.err,
            "a service that is not configured is refused, and those that are are named", str(refused))
    nothing = stage.daemon.ctl("drain", "--to", address("b"), "--json")
    case.ok(nothing.code not in (0, 3), "a drain of nothing is refused", str(nothing))
    dry = stage.daemon.ctl("drain", "--service", "few", "--to", address("b"), "--dry-run", "--json")
    case.equal({each["client"].rpartition(":")[0] for each in dry["sessions"] or ()}, set(few),
               "a dry run of a service has its clients")

    answer = stage.daemon.ctl("drain", "--service", "few", "--to", address("b"), "--to", address("d"), "--json")
    case.equal([answer.code, answer["service"], answer["total"], answer["moved"], answer["failed"]],
               [0, "few", share, share, 0], "a service with a rate is drained whole, and nobody is refused")
    # As the daemon has begun them: what clients see of it comes with the delays of a busy machine.
    begun = sorted(each["requestedAt"] for each in stage.daemon.ctl("migrations", "--json")["migrations"]
                   if each["requestedAt"] >= answer["requestedAt"])
    # A window admits a second's worth at once, so the last second's worth comes early.
    took, least = begun[-1] - begun[0], -(-share // rate) - 1
    worst = max(sum(first <= each < first + 0.99 for each in begun) for first in begun)
    case.note("%d sessions in %.2f s at %d a second; the most within a second %d" % (len(begun), took, rate, worst))
    case.ok(len(begun) == share and least - 0.01 < took < 1.15 * least + 0.3 and worst <= rate, "at its rate",
            "%d, %.2f s, %d" % (len(begun), took, worst))
    case.equal(crowd.settled()["up"], {"A": count - share, "B": share // 2, "D": share // 2},
               "in equal shares, and the other service is where it was")
    # Those on B are to be on D too; those on D are not touched.
    again = stage.daemon.ctl("drain", "--service", "few", "--to", address("d"), "--json")
    case.equal([again.code, again["total"], crowd.settled()["up"]],
               [0, share // 2, {"A": count - share, "D": share}], "without a host, those on a to-host already stay")
    both = stage.daemon.ctl("drain", address("d"), "--service", "rest", "--to", "home", "--json")
    case.equal(both.code, 3, "host and service together: the other service has nothing there")
    home = stage.daemon.ctl("drain", "--service", "few", "--to", "home", "--json")
    case.equal([home.code, home["total"], crowd.settled()["up"]], [0, share, {"A": count}],
               "the service is sent home, and no rate holds it up")
    # A canary whose way back leads to a host waits for the rate too.
    stage.daemon.ctl("drain", "--service", "few", "--to", address("b"), "--json")
    back = stage.daemon.ctl("drain", address("b"), "--service", "few", "--to", endpoint(address("d"), TREACHEROUS),
                            "--canary", "1", "--json")
    case.equal([back.code, back["outcome"], back["returned"]], [1, "failed", back["moved"]],
               "a canary with a rate goes back whole")
    case.equal(crowd.settled()["up"], {"A": count - share, "B": share}, "to where it was")
    case.equal(stage.daemon.ctl("drain", "--service", "few", "--to", "home").code, 0, "and home")
    stage.daemon.reload(service=EVERYTHING)


def body(case):
    count = 2000 if case.full else 400
    with Stage([PORT]) as stage:
        crowd = CrowdOf(stage.lab, count, PORT, busy=20)
        case.equal(crowd.settled(60)["up"], {"A": count}, "%d connections are on A" % count)
        traitor(stage, "d", TREACHEROUS, "soon")
        traitor(stage, "d", MUTE, "late")
        refused_canary(case, stage, crowd, count, "a host that resets soon", endpoint(address("d"), TREACHEROUS))
        refused_canary(case, stage, crowd, count, "a host that resets after the first octets",
                       endpoint(address("d"), MUTE))

        # A to-host that does not listen is found out before anything moves.
        crowd.history()
        answer = stage.daemon.ctl("drain", address("a"), "--to", endpoint(address("d"), 7997), "--json")
        case.equal([answer.code, answer["outcome"], answer["moved"], answer["waiting"]], [1, "failed", 0, count],
                   "a host that does not listen: nothing moves")
        case.equal(crowd.history()["downs"], [], "and nobody notices")

        # The same canary on a sound host; paused in the canary, nothing follows.
        began = stage.daemon.ctl("drain", address("a"), "--to", address("b"), "--canary", "5%", "--settle", "1",
                                 "--rate", "200", "--no-wait", "--json")
        number = began["id"]
        stage.daemon.ctl("pause", number)
        time.sleep(2.5)
        report = stage.daemon.ctl("drains", "--json")["drains"][-1]
        case.ok(report["isPaused"] and report["moved"] + report["inFlight"] <= count // 20,
                "a sound host, paused: no more than the canary has moved", json.dumps(report))
        stage.daemon.ctl("resume", number)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not report.get("outcome"):
            time.sleep(0.2)
            report = stage.daemon.ctl("drains", "--json")["drains"][-1]
        case.equal([report["outcome"], report["moved"], report["failed"]], ["completed", count, 0],
                   "resumed: the canary succeeds and the rest follows")
        case.equal(crowd.settled()["up"], {"B": count}, "everybody is on B")

        # A failed canary goes back to where it was, which need not be home.
        answer = stage.daemon.ctl("drain", address("b"), "--to", endpoint(address("d"), TREACHEROUS), "--canary", "0.05",
                                  "--json")
        case.equal([answer.code, answer["outcome"], answer["returned"]], [1, "failed", answer["moved"]],
                   "from B: the canary fails and goes back")
        case.equal(crowd.settled()["up"], {"B": count}, "to B")

        cancelled = stage.daemon.ctl("drain", address("b"), "--to", "home", "--rate", "50", "--no-wait", "--json")
        time.sleep(1)
        stage.daemon.ctl("cancel", cancelled["id"])
        time.sleep(1)
        report = stage.daemon.ctl("drains", "--json")["drains"][-1]
        case.ok(report["outcome"] == "cancelled" and 20 <= report["moved"] <= 90 and report["inFlight"] == 0,
                "a drain that is cancelled ends after those under way", json.dumps(report))
        up = crowd.settled()["up"]
        case.equal(up.get("A", 0), report["moved"], "what had moved stays")
        answer = stage.daemon.ctl("drain", address("b"), "--to", "home", "--json")
        case.equal([answer.code, crowd.settled()["up"]], [0, {"A": count}], "all are home in the end")
        services(case, stage, crowd, count)
        crowd.close()
        time.sleep(0.5)
        stage.clean(case, patience=15)
        held = [each for each in sockets(stage.lab, "d") if each[0] == "ESTAB" and each[2] in (TREACHEROUS, MUTE)]
        case.equal(held, [], "the host that resets holds nothing")
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
