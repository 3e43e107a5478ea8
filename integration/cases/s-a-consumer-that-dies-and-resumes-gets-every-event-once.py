#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A consumer of the event stream that is killed in the middle of many migrations and of a drain, again and again, and resumes:
no event is lost and none comes twice. One that does not read holds nobody up; over a restart of the daemon ids rise, and what is
gone is said to be gone."""

import json
import os
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from lab import address
from many import CrowdOf
from openapi import Description
from product import program
from rawhttp import EventStream, request
from stage import Stage

PORT = 7000
SEED = 11


class Traffic:
    """Migrates sessions back and forth, several at once, until stopped."""

    def __init__(self, stage, names):
        self.stage, self.done, self.failed, self.running = stage, 0, [], True
        self.threads = [threading.Thread(target=self._one, args=(name,)) for name in names]
        for thread in self.threads:
            thread.start()

    def _one(self, name):
        turn = self.stage.turns.setdefault(name, 0)
        while self.running:
            host = ("b", "d", None)[turn % 3]
            to = self.stage.host(name, host) if host else None
            answer = self.stage.daemon.migrate(self.stage.who(name), self.stage.home(name), to)
            if answer.code == 0:
                self.done += 1
                turn += 1
            elif answer.code == 3:
                time.sleep(0.05)  # The client is about to connect again.
            else:
                self.failed.append(str(answer))
                turn += 1

    def stop(self):
        self.running = False
        for thread in self.threads:
            thread.join()


def killed_by_socket(stage, events, last, rng):
    """A consumer that breaks off at any octet; where to resume."""
    stream = EventStream(stage.daemon.socket, last=last, events=events)
    time.sleep(rng.uniform(0.0, 0.12))
    stream.close()
    return stream.last if stream.last is not None else last


def killed_by_signal(stage, events, last, rng):
    """nfqmigctl, SIGKILLed; only whole lines count."""
    child = subprocess.Popen([program("nfqmigctl"), "--socket", stage.daemon.socket, "events", "--json", "--after",
                              str(last or 0)], stdout=subprocess.PIPE)
    time.sleep(rng.uniform(0.05, 0.25))
    child.kill()
    for line in child.communicate()[0].split(b"\n")[:-1]:
        events.append(json.loads(line))
        last = events[-1]["id"]
    return last


def exact(case, found, wanted, what):
    ids = [event["id"] for event in found]
    case.ok(len(ids) == len(set(ids)), what + ": no event came twice", lambda: str(
        sorted(one for one in set(ids) if ids.count(one) > 1)[:20]))
    case.equal(ids, [event["id"] for event in wanted], what + ": no event is lost, and they are in order")
    case.ok(found == wanted, what + ": each is what it was for others")


def settled(stream, patience=10):
    """Wait until a stream has been silent for a moment."""
    deadline, count = time.monotonic() + patience, -1
    while time.monotonic() < deadline and count != len(stream.events):
        count = len(stream.events)
        time.sleep(0.7)


def kills(case, stage, names):
    rng, rounds = random.Random(SEED), 200 if case.full else 25
    reference = EventStream(stage.daemon.socket)
    sleeper = EventStream(stage.daemon.socket, reads=False)
    first = stage.daemon.migrate(stage.who(names[0]), stage.home(names[0]), stage.host(names[0], "b"))["id"]
    stage.turns = {names[0]: 1}
    one, last_one, two, last_two = [], None, [], None
    traffic = Traffic(stage, names)
    for _ in range(rounds):
        last_one = killed_by_socket(stage, one, last_one, rng)
        last_two = killed_by_signal(stage, two, last_two, rng)
    traffic.stop()
    settled(reference)
    tail_one = EventStream(stage.daemon.socket, last=last_one, events=one)
    tail_two = EventStream(stage.daemon.socket, last=last_two, events=two)
    settled(tail_one)
    settled(tail_two)
    case.equal(traffic.failed[:3], [], "%d migrations, %d at once, beside a consumer that does not read"
               % (traffic.done, len(names)))
    wanted = list(reference.events)
    ids = [event["id"] for event in wanted]
    case.equal(ids, list(range(ids[0], ids[0] + len(ids))), "ids rise by one")
    finished = [event for event in wanted if event["kind"] == "migration.finished"]
    case.ok(len(finished) >= traffic.done, "every migration has its end among them", len(finished))
    exact(case, one, wanted, "a consumer whose connection broke %d times" % rounds)
    exact(case, two, wanted, "nfqmigctl, killed %d times" % rounds)
    case.note("%d events of %d migrations; %.1f events a break" % (len(wanted), traffic.done, len(wanted) / rounds))
    only = EventStream(stage.daemon.socket, "/v1/events?after=0&migration=%d" % first)
    settled(only)
    exact(case, only.events, [event for event in wanted if event.get("migration") == first], "the filter by migration")
    description = Description()
    if description.skip:
        case.skip("every event is described", description.skip)
    else:
        bad = [misfit for event in wanted for misfit in description.misfits(
            {"$ref": "#/components/schemas/Event"}, event)]
        case.equal(bad[:3], [], "every event is described")
    for stream in (reference, tail_one, tail_two, only, sleeper):
        stream.close()
    return wanted[-1]["id"]


def mid_drain(case, stage, after):
    """Consumers that are killed while a drain moves hundreds of sessions, one that resumes only when it is over, and one
    that looks at this drain alone; all of them from event `after` on."""
    rng, count = random.Random(SEED), 1500 if case.full else 400
    crowd = CrowdOf(stage.lab, count, PORT, busy=20)
    case.equal(crowd.settled(60)["up"], {"A": count}, "%d connections are to be drained" % count)
    path = stage.daemon.socket
    reference = EventStream(path, last=after)
    one, last_one, two, last_two, late, last_late = [], after, [], after, [], after
    begun = stage.daemon.ctl("drain", address("a"), "--to", address("b"), "--to", address("d"), "--client",
                             "198.18.1.96/27", "--rate", "100", "--no-wait", "--json")
    number, kills, progress = begun["id"], 0, []
    while True:
        last_one = killed_by_socket(stage, one, last_one, rng)
        last_two = killed_by_signal(stage, two, last_two, rng)
        if kills == 3:
            last_late = killed_by_socket(stage, late, last_late, rng)
        report = next(each for each in stage.daemon.ctl("drains", "--json")["drains"] if each["id"] == number)
        if report.get("outcome"):
            break
        kills += 1
        progress.append(report["moved"])
    case.equal([report["outcome"], report["total"], report["moved"]], ["completed", count, count],
               "the drain moves everybody meanwhile")
    case.ok(kills >= 10 and 0 < progress[1] < progress[-1] < count,
            "two consumers are killed %d times each while it runs" % kills, str(progress))
    settled(reference)
    tails = [EventStream(path, last=last, events=events)
             for last, events in ((last_one, one), (last_two, two), (last_late, late))]
    for tail in tails:
        settled(tail)
    wanted = list(reference.events)
    ids = [event["id"] for event in wanted]
    case.equal(ids, list(range(after + 1, after + 1 + len(ids))), "ids rise by one through the drain")
    finished = [event["migration"] for event in wanted if event["kind"] == "migration.finished"
                and event.get("drain") == number]
    case.equal([len(finished), len(set(finished))], [count, count], "each session's migration has one end among them")
    exact(case, one, wanted, "mid-drain, a consumer whose connection broke %d times" % kills)
    exact(case, two, wanted, "mid-drain, nfqmigctl, killed %d times" % kills)
    exact(case, late, wanted, "mid-drain, a consumer that was killed early and resumes when all is over")
    only = EventStream(path, "/v1/events?after=%d&drain=%d" % (after, number))
    settled(only)
    exact(case, only.events, [event for event in wanted if event.get("drain") == number], "the filter by drain")
    case.note("%d events of a drain of %d sessions; %.1f events a kill" % (len(wanted), count, len(wanted) / kills))
    for stream in [reference, only] + tails:
        stream.close()
    for host in "bd":
        stage.daemon.ctl("drain", address(host), "--to", "home", "--client", "198.18.1.96/27", "--json")
    case.equal(crowd.settled()["up"], {"A": count}, "all are sent home")
    crowd.close()


def restarts(case, stage, name):
    """Ids over an orderly end and over a crash."""
    path = stage.daemon.socket

    def move(host):
        return stage.moved(name, host, patience=10)[0].code == 0

    follower = EventStream(path, "/v1/events")
    move("b")
    settled(follower)
    last = follower.last
    stage.daemon.stop()
    stage.daemon.start()
    resumed = EventStream(path, last=last)
    move("d")
    settled(resumed)
    case.ok(resumed.status == 200 and resumed.events and resumed.events[0]["id"] == last + 1,
            "after an orderly end a consumer that has seen everything resumes without a gap", str(resumed.error))
    early = EventStream(path, last=last - 1)
    case.ok(early.status == 410 and early.error["oldest"] == last + 1 and early.error["type"].endswith("events-gone"),
            "one that has not is told that events are gone, and the oldest kept", str(early.error))
    last = resumed.last
    stage.daemon.kill()
    stage.daemon.start()
    late = EventStream(path, last=last)
    case.ok(late.status == 410 and late.error["oldest"] > last,
            "after a crash what may be missing is said to be gone", "%s %s" % (late.status, late.error))
    fresh = EventStream(path, last=late.error["oldest"] - 1 if late.error else 0)
    move("return")
    settled(fresh)
    case.ok(fresh.events and fresh.events[0]["id"] > last, "and no id is given out twice", str(fresh.events[:1]))
    for stream in (follower, resumed, early, late, fresh):
        stream.close()


def body(case):
    names = ["s%d" % index for index in range(4)]
    with Stage([PORT]) as stage:
        for index, name in enumerate(names):
            stage.open(name, "rr", PORT, sport=20001 + index)
        last = kills(case, stage, names)
        mid_drain(case, stage, last)
        restarts(case, stage, names[0])
        for name in names[1:]:
            stage.migrate(name, "return")
        stage.clean(case)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
