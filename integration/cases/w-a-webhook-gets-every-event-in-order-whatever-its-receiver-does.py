#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A webhook's receiver answers 500, hangs, trickles, redirects, is down and comes back, while sessions migrate: every event
arrives, in order, none is accepted twice, and no migration notices. Its position outlives the daemon; what was lost with
the daemon is said to be lost; bad settings are refused."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from lab import LabError
from openapi import Description
from product import EVERYTHING, program, toml
from rawhttp import EventStream, answers, request
from receiver import Receiver
from stage import Stage

BULK, OTHER = 7000, 7001
SERVICES = [dict(EVERYTHING[0], name="bulk", homes=["0.0.0.0/0:%d" % BULK]), dict(EVERYTHING[0], name="other")]


class Traffic:
    """Migrates sessions back and forth, all at once, until stopped; how long each migration took."""

    def __init__(self, stage):
        self.stage, self.running, self.took, self.failed = stage, True, [], []
        self.threads = [threading.Thread(target=self._one, args=(name,)) for name in stage.sessions]
        for thread in self.threads:
            thread.start()

    def _one(self, name):
        turn = 0
        while self.running or turn % 2:
            answer, up, _ = self.stage.moved(name, ("b", "return")[turn % 2])
            turn += 1
            if answer.code or not up:
                self.failed.append(str(answer))
            self.took.append(answer.ended - answer.started)

    def stop(self):
        self.running = False
        for thread in self.threads:
            thread.join()


def await_last(receiver, reference, patience=15):
    """Wait until the receiver has what the reference has had; whether it did."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = receiver.events()
        if found and reference.events and found[-1]["id"] == reference.events[-1]["id"]:
            return True
        time.sleep(0.1)
    return False


def conducts(case, stage, everything, ends):
    """One conduct after the other while sessions migrate."""
    reference, seconds = EventStream(stage.daemon.socket), 6 if case.full else 2.5
    quick, files = {}, len(os.listdir("/proc/%d/fd" % stage.daemon.pid))
    for conduct in ("accept", "refuse", "hang", "trickle", "redirect", "down", "accept"):
        if conduct == "down":
            everything.stop()
        else:
            everything.conduct(conduct)
        traffic = Traffic(stage)
        time.sleep(seconds)
        traffic.stop()
        case.equal(traffic.failed[:2], [], "%s: %d migrations, all of them proven" % (conduct, len(traffic.took)))
        quick[conduct] = statistics.median(traffic.took)
        if conduct == "down":
            everything.conduct("accept")
            everything.start()
    case.ok(max(quick.values()) < 3 * quick["accept"] + 0.2, "migrations take as long as with a receiver that accepts",
            str(quick))
    case.note("median of a migration: " + ", ".join("%s %.0f ms" % (one, 1000 * took) for one, took in quick.items()))
    case.ok(await_last(everything, reference), "once it accepts again, it has everything within 15 s")
    found, wanted = everything.events(), list(reference.events)
    case.equal([event["id"] for event in found], [event["id"] for event in wanted],
               "every event was accepted once, and in order")
    case.ok(found == wanted, "each is what the event stream has")
    case.equal([d["missed"] for d in everything.accepted() if "missed" in d], [], "nothing was missed")
    case.equal(sorted({conduct for conduct, *_ in everything.requests()}),
               ["accept", "hang", "redirect", "refuse", "trickle"], "(each conduct was met)")
    case.equal({path for _, path, *_ in everything.requests()}, {"/everything"}, "a redirection is not followed")
    last = 0
    for conduct, _, document, accepted in everything.requests():
        first = document["events"][0]["id"]
        if first != last + 1:
            case.ok(False, "each request begins behind the last one that was accepted", "%d after %d" % (first, last))
        last = document["events"][-1]["id"] if accepted else last
    selected = [event for event in wanted if event["kind"] == "migration.finished" and event.get("service") == "bulk"]
    case.ok(selected and len(selected) < len(wanted) // 4, "(some events are chosen)", len(selected))
    case.equal(ends.events(), selected, "the other webhook has the events of its kind and service, and no others")
    case.equal({len(document["events"]) for document in ends.accepted()}, {1}, "as many a request as it is set")
    case.note("%d events in %d requests, %d of them accepted" % (
        len(found), len(everything.requests()), len(everything.accepted())))
    time.sleep(1)
    case.ok(len(os.listdir("/proc/%d/fd" % stage.daemon.pid)) <= files + 6, "no descriptor is left behind",
            lambda: os.popen("ls -l /proc/%d/fd" % stage.daemon.pid).read())
    description = Description()
    if description.skip:
        case.skip("deliveries are described", description.skip)
    else:
        schema = {"$ref": "#/components/schemas/EventDelivery"}
        misfits = [description.misfits(schema, document) for _, _, document, _ in everything.requests()[:20]]
        case.equal([each for each in misfits if each], [], "deliveries are described")
    return reference


def restarts(case, stage, everything, reference):
    """The position outlives the daemon; what does not is said to be lost."""
    reference.close()
    last = everything.events()[-1]["id"]
    stage.daemon.stop()
    stage.daemon.start()
    reference = EventStream(stage.daemon.socket)
    stage.moved("s", "b")
    case.ok(await_last(everything, reference), "after an orderly restart it gets what happens")
    fresh = [event["id"] for event in everything.events() if event["id"] > last]
    case.equal(fresh, list(range(last + 1, last + 1 + len(fresh))), "behind the last one it had, without a gap")
    case.equal([d["missed"] for d in everything.accepted() if "missed" in d], [], "and nothing is said to be missed")
    everything.conduct("refuse")
    reference.close()
    last = everything.events()[-1]["id"]
    stage.moved("s", "return")
    stage.daemon.stop()
    stage.daemon.start()
    reference = EventStream(stage.daemon.socket)
    everything.conduct("accept")
    stage.moved("s", "b")
    case.ok(await_last(everything, reference), "after a restart with events that it had refused it gets the new ones")
    missed = [d["missed"] for d in everything.accepted() if "missed" in d]
    fresh = [event["id"] for event in everything.events() if event["id"] > last]
    case.ok(len(missed) == 1 and missed[0]["first"] == last + 1 and missed[0]["last"] == fresh[0] - 1
            and missed[0]["last"] >= missed[0]["first"], "and is told once, and exactly, what is lost",
            "%s; %d; %s" % (missed, last, fresh[:3]))
    case.ok("kept no longer" in stage.daemon.tail(200), "so is the log")
    reference.close()
    last = everything.events()[-1]["id"]
    stage.daemon.kill()
    stage.daemon.start()
    reference = EventStream(stage.daemon.socket)
    stage.moved("s", "return")
    case.ok(await_last(everything, reference), "after a crash it gets what happens")
    missed = [d["missed"] for d in everything.accepted() if "missed" in d]
    case.ok(len(missed) == 2 and missed[1]["first"] == last + 1, "and is told that something may be lost", str(missed))
    ids = [event["id"] for event in everything.events()]
    case.equal(ids, sorted(set(ids)), "over all of that no id came twice, and they rise")
    return reference


def reloads(case, stage, everything, reference):
    """SIGHUP: a webhook that goes on, one that changes, one that is new, one that is gone."""
    settings = {"name": "everything", "post": everything.address, "timeout": 1, "longest-pause": 1}
    late = Receiver(stage.lab, "late", 8203)
    said = stage.daemon.reload(webhook=[dict(settings, batch=7), {"name": "late", "post": late.address}])
    case.ok("2 webhooks" in said, "SIGHUP takes them", said)
    case.ok("other settings wait" not in said, "and a webhook needs no new start", said)
    before = reference.events[-1]["id"]
    stage.moved("s", "b")
    case.ok(await_last(everything, reference) and await_last(late, reference), "both get what happens")
    case.equal(late.events()[0]["id"], before + 1, "the new one from now on")
    ids = [event["id"] for event in everything.events()]
    case.equal(ids, sorted(set(ids)), "the one that has changed goes on where it was")
    # Two that hang: both are gone at once.
    everything.conduct("hang")
    stage.moved("s", "return")
    time.sleep(0.3)
    said = stage.daemon.reload(webhook=[{"name": "late", "post": late.address}])
    case.ok("1 webhooks" in said, "one is taken away in the middle of a request", said)
    count = len(everything.requests())
    stage.moved("s", "b")
    case.ok(await_last(late, reference), "the other one goes on")
    case.equal(len(everything.requests()), count, "the one that was taken away is not asked again")
    late.conduct("hang")
    stage.moved("s", "return")
    time.sleep(0.3)
    began = time.monotonic()
    stage.daemon.stop()
    case.ok(time.monotonic() - began < 5, "a daemon that ends does not wait for one that hangs",
            "%.1f s" % (time.monotonic() - began))
    late.conduct("accept")
    stage.daemon.start()
    said = stage.daemon.reload(webhook=[{"name": "late", "post": "gopher://127.0.0.1/"}])
    case.ok("stay as they were" in said and "late" in said and "post" in said, "a bad webhook is refused at SIGHUP", said)
    stage.moved("s", "b")
    stage.moved("s", "return")
    deadline = time.monotonic() + 5
    while not any("missed" in document for document in late.accepted()) and time.monotonic() < deadline:
        time.sleep(0.1)
    case.ok(any("missed" in document for document in late.accepted()), "and the good one goes on")


def floods(case, stage):
    """More events than are kept while the receiver refuses: it is told what it has missed, and gets all that is there."""
    path, receiver = stage.daemon.socket, Receiver(stage.lab, "flooded", 8204)
    stage.daemon.reload(webhook=[{"name": "flooded", "post": receiver.address, "longest-pause": 1, "batch": 1000}])
    receiver.conduct("refuse")
    # Home is where it is: refused, and cheap.
    order = json.dumps({"client": stage.who("s"), "from": stage.home("s"), "to": "home"}).encode()
    octets = 100 * (b"POST /v1/migrations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(order) + order)
    began, oldest = time.monotonic(), 0
    first = oldest = request(path, "GET", "/v1/events?after=9007199254740000").json["oldest"]
    while oldest < first + 1000 and time.monotonic() - began < 300:
        for _ in range(20):
            answers(path, octets)
        oldest = request(path, "GET", "/v1/events?after=9007199254740000").json["oldest"]
    case.note("oldest event %d after %.0f s" % (oldest, time.monotonic() - began))
    case.ok(oldest > first, "(events are lost)", oldest)
    answer, up, _ = stage.moved("s", "b")
    case.ok(answer.code == 0 and bool(up), "a session migrates meanwhile", lambda: str(answer))
    stage.moved("s", "return")
    reference = EventStream(path)
    time.sleep(3)
    receiver.conduct("accept")
    case.ok(await_last(receiver, reference, 60), "once it accepts again, it has the last event within 60 s")
    reference.close()
    accepted = receiver.accepted()
    missed, ids = accepted[0].get("missed"), [event["id"] for event in receiver.events()]
    case.ok(missed and missed["last"] == ids[0] - 1 >= oldest - 1, "it is told what it has missed", "%s, %d" % (missed, ids[0]))
    case.equal(ids, list(range(ids[0], ids[0] + len(ids))), "and gets everything behind it, in order")
    case.ok(len(ids) >= 65536, "at least as many as are said to be kept", len(ids))
    case.equal(len([each for each in accepted if "missed" in each]), 1, "which is said once")


def refusals(case, stage):
    """`nfqmigd check` and `nfqmigd run` name what is wrong."""
    good = {"name": "x", "post": "http://127.0.0.1:8201/"}
    wrong = {"no name": {"post": "http://127.0.0.1/"}, "a bad name": dict(good, name="a b"), "no address": {"name": "x"},
             "no web address": dict(good, post="127.0.0.1:80"), "another scheme": dict(good, post="ftp://127.0.0.1/"),
             "no host": dict(good, post="http:///x"), "an unknown kind": dict(good, kinds=["migration.end"]),
             "no kind": dict(good, kinds=[]), "an unknown service": dict(good, service="nobody"),
             "a batch of 0": dict(good, batch=0), "half an event": dict(good, batch=1.5),
             "no time": dict(good, timeout=0), "an endless pause": {**good, "longest-pause": 86400},
             "an unknown key": dict(good, secret="x"), "a table": 1, "two of one name": [good, good]}
    for what, webhook in wrong.items():
        path = stage.lab.path("bad.toml")
        with open(path, "w") as file:
            file.write(toml(dict(stage.daemon.settings, webhook=webhook if isinstance(webhook, (list, int)) else [webhook])))
        for verb in ("check", "run"):
            done = subprocess.run([program("nfqmigd"), verb, "--config", path], capture_output=True, text=True, timeout=10)
            said = done.stderr.strip()
            case.ok(done.returncode == 78 and len(said.splitlines()) == 1 and path in said and "webhook" in said
                    and said.endswith("."), "%s is refused by %s" % (what, verb), lambda: "%d: %s" % (done.returncode, said))


def body(case):
    with Stage([BULK], more_ports=[OTHER], service=SERVICES) as stage:
        everything, ends = Receiver(stage.lab, "everything", 8201), Receiver(stage.lab, "ends", 8202)
        said = stage.daemon.reload(webhook=[
            {"name": "everything", "post": everything.address, "timeout": 1, "longest-pause": 1},
            {"name": "ends", "post": ends.address, "kinds": ["migration.finished"], "service": "bulk", "batch": 1}])
        if "2 webhooks" not in said:
            raise LabError(said)
        stage.open("s", "rr", BULK, sport=20001)
        stage.open("t", "rr", BULK, sport=20002)
        stage.open("o", "rr", OTHER, sport=20003)
        refusals(case, stage)
        reference = conducts(case, stage, everything, ends)
        reference = restarts(case, stage, everything, reference)
        reloads(case, stage, everything, reference)
        if case.full:
            floods(case, stage)
        stage.clean(case)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
