#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no service names does not move; each refusal names its rule, ends with 5 and changes nothing; home is always
allowed. A new policy is taken at SIGHUP without losing a packet, a bad one is not taken at all, and every request is in
the audit log with who asked and what was answered."""

import os
import stat
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack, queue_drops, ruleset
from lab import address, endpoint
from product import DONE, REFUSED, program
from stage import Stage

PORT, OTHER = 7000, 7001


def state(stage):
    return ruleset(stage.lab), sorted((entry.original, entry.reply) for entry in conntrack(stage.lab))


def refused(case, stage, what, rule, *words):
    before, mark = state(stage), stage.client.mark()
    answer = stage.daemon.migrate(*words)
    case.equal(answer.code, REFUSED, what + ": exit code 5")
    case.ok(rule in answer.err and len(answer.err.strip().splitlines()) == 1, what + ": the rule is named",
            lambda: str(answer))
    case.note("%s → %s" % (what, answer.err.strip()))
    case.equal(state(stage), before, what + ": table and conntrack are as before")
    case.equal(stage.client.seen("s", "down", mark=mark), [], what + ": the connection was not touched")
    last = stage.daemon.audited()[-1]
    case.ok(last["status"] in (403, 429) and rule in last["answer"] and last["request"]["client"] == words[0]
            and last["path"] == "/v1/migrations", what + ": it is in the audit log", str(last))


def rules(case, stage):
    client, home, b, d = stage.who("s"), stage.home("s"), address("b"), address("d")
    refused(case, stage, "without a service", "No service names " + home, client, home, b)
    redis = {"name": "redis", "homes": [home], "hosts": [b]}
    stage.daemon.reload(service=[redis])
    refused(case, stage, "another host", "Service \"redis\": %s is not among its hosts" % endpoint(d, PORT),
            client, home, d)
    refused(case, stage, "another home", "No service names " + stage.home("other"), stage.who("other"),
            stage.home("other"), b)
    stage.daemon.reload(service=[dict(redis, clients=["198.18.77.0/24"])])
    refused(case, stage, "another client", "Service \"redis\": %s is not among its clients" % address("c"), client, home,
            b)
    stage.daemon.reload(service=[dict(redis, hosts=[b + ":1-%d" % (PORT - 1)])])
    refused(case, stage, "another port", "is not among its hosts", client, home, b)
    # One migration in ten seconds: the second has to wait, the way home has not.
    stage.daemon.reload(service=[dict(redis, hosts=[b, d], rate=0.1)])
    case.equal(stage.moved("s", "b")[0].code, DONE, "what the policy names is moved")
    refused(case, stage, "above the rate", "Service \"redis\": its rate of 0.1 migrations per second", client, home, d)
    stage.daemon.reload(service=[dict(redis, hosts=[])])
    refused(case, stage, "on to a host that the policy no longer names", "is not among its hosts", client, home, d)
    case.equal(stage.moved("s", "return")[0].code, DONE, "the way home is open all the same")
    stage.daemon.reload(service=[redis])
    case.equal(stage.moved("s", "b")[0].code, DONE, "moved again")
    stage.daemon.reload(service=[])
    case.equal(stage.moved("s", "return")[0].code, DONE, "root takes home what no service names any more")
    return redis


def callers(case, stage, redis):
    """Needs a daemon that knows who asks."""
    if not stage.daemon.audited()[-1]["process"]:
        case.skip("callers and readers", "this daemon does not learn who asks")
        return
    client, home, b = stage.who("s"), stage.home("s"), address("b")
    stage.daemon.reload(service=[dict(redis, callers=["nobody"])])
    refused(case, stage, "another caller", "Service \"redis\": user 0 is not among its callers", client, home, b)
    stage.daemon.reload(service=[dict(redis, readers=["root"])])
    refused(case, stage, "a reader", "Service \"redis\": user 0 is among its readers", client, home, b)
    stage.daemon.reload(service=[dict(redis, callers=["nobody", "@root"])])
    case.equal(stage.moved("s", "b")[0].code, DONE, "a caller of the group may")
    case.equal(stage.moved("s", "return")[0].code, DONE, "home again")


def reloads(case, stage, redis):
    """Packets through the queues all the while."""
    stage.daemon.reload(service=[redis])
    case.equal(stage.moved("bulk", "b", "--datapath", "queue")[0].code, DONE, "a session in the queue datapath")
    mark, dropped = stage.client.mark(), queue_drops(stage.lab)
    before = stage.client.stats()["bulk"]
    for _ in range(20):
        stage.daemon.reload(service=[redis])
    case.equal(stage.client.seen("bulk", "down", mark=mark), [], "20 reloads: the connection goes on")
    case.equal(queue_drops(stage.lab), dropped, "20 reloads: no packet was lost in the queues")
    after = stage.client.stats()["bulk"]
    case.ok(after["received"] > before["received"] + 100000, "(while data passed)", str((before, after)))
    said = stage.daemon.reload(service=[dict(redis, colour="green")])
    case.ok("stay as they were" in said and 'service "redis": colour is not a setting' in said,
            "a bad configuration is not taken, and its mistake is named with the key", said)
    case.equal(stage.moved("s", "b")[0].code, DONE, "the policy before it stands")
    stage.moved("s", "return")
    said = stage.daemon.reload(service=[redis], reset_timeout=2000)
    case.ok("wait for a restart" in said, "a setting that cannot be changed so is named as such", said)
    # As logrotate does it.
    path = os.path.join(stage.daemon.settings["state-directory"], "audit.log")
    case.equal(stat.S_IMODE(os.stat(path).st_mode), 0o640, "the audit log is for its owner and group")
    os.rename(path, path + ".1")
    stage.daemon.reload()
    stage.moved("s", "b")
    lines = stage.daemon.audited()
    case.ok(len(lines) == 1 and lines[0]["status"] == 201 and lines[0]["answer"].startswith("migration ")
            and {"user", "group", "process", "at"} <= set(lines[0]), "after SIGHUP the audit log goes on in a new file",
            str(lines))
    stage.moved("s", "return")
    stage.moved("bulk", "return")


def checked(case, stage, redis):
    def check(**settings):
        stage.daemon.configure(**settings)
        done = stage.lab.run("g", program("nfqmigd"), "check", "--config", stage.daemon.config, check=False)
        return done.returncode, done.stdout + done.stderr

    for wrong, clue in ((dict(redis, hosts=["198.18.3.0/8"]), "hosts names \"198.18.3.0/8\""),
                        (dict(redis, homes=["198.18.2.2"]), "homes names 198.18.2.2 without a port"),
                        (dict(redis, rate="fast"), "rate must be a number"),
                        (dict(redis, callers=["nobody-at-all"]), "callers names \"nobody-at-all\"")):
        code, said = check(service=[wrong])
        case.ok(code == 78 and "service \"redis\": " + clue in said, "check names the mistake: " + clue, said)
    code, said = check(service=[])
    case.ok(code == 0 and "every migration is refused" in said, "check says when nothing may move", said)
    code, said = check(service=[redis], hook=[{"on": "switched", "run": ["/nowhere/hook"]}])
    case.ok(code == 1 and "/nowhere/hook cannot be run" in said, "check says which hook cannot be run", said)


def body(case):
    with Stage([PORT, OTHER], service=[]) as stage:
        stage.open("s", "rr", PORT, sport=20001, think=5)
        stage.open("other", "rr", OTHER, sport=20002, think=5)
        stage.open("bulk", "bulk", PORT, sport=20003, rate=5000000)
        redis = rules(case, stage)
        callers(case, stage, redis)
        reloads(case, stage, redis)
        stage.clean(case)
        stage.healthy(case)
        checked(case, stage, redis)


if __name__ == "__main__":
    tap.main(body)
