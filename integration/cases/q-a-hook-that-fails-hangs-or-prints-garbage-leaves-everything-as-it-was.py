#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A prepare hook that fails, hangs or prints garbage, as a program and as a webhook: the migration fails with one clear
sentence, the from-host is not touched and the connection with its data goes on. One that works starts the application
and may choose the host; the other hooks' failures undo nothing; a daemon that stops does not wait for a hook."""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import hooks
import tap
from capture import RST, SYN, Capture
from inspection import children, ruleset, sockets
from lab import HERE, address, endpoint
from product import DONE, FAILED
from stage import Stage, captures

PORT, STARTED, WEB = 7000, 7060, 8099


def service(hosts):
    return [{"name": "bulk", "homes": [address("a") + ":%d" % PORT], "hosts": hosts}]


def running(path):
    """Which of the processes are there whose numbers a hook has written into a file."""
    return [pid for pid in hooks.lines(path) if os.path.exists("/proc/%s" % pid)]


def gone(path, patience=2):
    deadline = time.monotonic() + patience
    while running(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not running(path)


def unharmed(case, stage, what, hook, clue, limit):
    """Migrate with a hook that must stop it."""
    said = stage.daemon.reload(hook=[dict(hook, on="prepare")])
    case.ok("configuration reloaded" in said, what + ": the hook is taken at SIGHUP", said)
    before = ruleset(stage.lab), sorted(sockets(stage.lab, "a")), stage.client.stats()["s"]["connections"]
    mark = stage.client.mark()
    on_a, on_b = Capture(stage.lab, "a"), Capture(stage.lab, "b")
    with captures(on_a, on_b):
        answer, _ = stage.migrate("s", "b")
        time.sleep(0.1)
    took = answer.ended - answer.started
    case.equal(answer.code, FAILED, what + ": exit code 1")
    lines = answer.err.strip().splitlines()
    case.ok(len(lines) == 1 and lines[0].endswith(".") and "prepare hook failed" in lines[0] and clue in lines[0],
            what + ": one sentence that says why", lambda: str(answer))
    case.note("%s, %.2f s: %s" % (what, took, answer.err.strip()))
    case.ok(took < limit, what + ": within %g s" % limit, "%.2f s" % took)
    case.equal(stage.client.seen("s", "down", mark=mark), [], what + ": the client has seen nothing")
    case.ok(stage.client.works("s"), what + ": data go on")
    after = ruleset(stage.lab), sorted(sockets(stage.lab, "a")), stage.client.stats()["s"]["connections"]
    case.equal(after, before, what + ": table, A's sockets and the client's connection are as before")
    marked = [str(each) for each in on_a.segments() if each.flags & (SYN | RST)]
    case.equal(marked, [], what + ": A has seen neither SYN nor RST")
    case.ok(len(on_a.segments()) > 20, what + ": (and the capture has seen its data)")
    case.equal(len(on_b.segments()), 0, what + ": B has seen nothing")
    case.equal(children(stage.daemon.pid), [], what + ": no process of the daemon is left")


def bad_hooks(case, stage):
    lab, pids = stage.lab, stage.lab.path("pids")
    web = "http://127.0.0.1:%d" % WEB
    script = {
        "fails": "echo 'the volume is busy' >&2\necho second line >&2\nexit 3\n",
        "hangs": "echo $$ >>%s\necho waiting for B >&2\nsleep 600\n" % pids,
        "ignores": "trap '' TERM INT HUP\necho $$ >>%s\nwhile :; do sleep 1; done\n" % pids,
        "garbage": "echo 'Started B, have fun'\n",
        "endless": "echo $$ >>%s\nexec yes\n" % pids,
        "array": "echo '[1, 2]'\n",
        "abroad": "echo '{\"to\": \"198.18.3.77:%d\"}'\n" % PORT,
    }
    path = {name: hooks.program(lab, name, text) for name, text in script.items()}
    unharmed(case, stage, "a program that fails", {"run": [path["fails"]]}, "it ended with 3: the volume is busy", 2)
    unharmed(case, stage, "a program that hangs", {"run": [path["hangs"]], "timeout": 1},
             "it did not end within 1 s: waiting for B", 2.5)
    unharmed(case, stage, "a program that ignores signals", {"run": [path["ignores"]], "timeout": 0.5},
             "it did not end within 0.5 s", 2)
    unharmed(case, stage, "a program that prints garbage", {"run": [path["garbage"]]}, "Started B, have fun", 2)
    unharmed(case, stage, "a program that prints without end", {"run": [path["endless"]], "timeout": 1},
             "it did not end within 1 s", 2.5)
    unharmed(case, stage, "a program that prints another document", {"run": [path["array"]]}, "[1, 2]", 2)
    unharmed(case, stage, "a program that chooses a host that the policy does not know", {"run": [path["abroad"]]},
             "198.18.3.77:%d is not among its hosts" % PORT, 2)
    unharmed(case, stage, "a program that is not there", {"run": [lab.path("nowhere")]}, "cannot be started", 2)
    case.ok(gone(pids), "no hook's process is left", lambda: str(running(pids)))
    case.ok(len(hooks.lines(pids)) == 3, "(three of them were seen)", lambda: str(hooks.lines(pids)))
    unharmed(case, stage, "a webhook that fails", {"post": web + "/fail"}, "status 503: there is no room on B", 2)
    unharmed(case, stage, "a webhook that hangs", {"post": web + "/hang", "timeout": 1}, "within 1 s", 3)
    unharmed(case, stage, "a webhook that trickles", {"post": web + "/trickle", "timeout": 1}, "within 1 s", 3)
    unharmed(case, stage, "a webhook that answers garbage", {"post": web + "/garbage"}, "<html>hello</html>", 2)
    unharmed(case, stage, "a webhook that is not there", {"post": "http://127.0.0.1:9/"}, "cannot be reached", 3)


def loop_is_free(case, stage):
    path = hooks.program(stage.lab, "slow", "sleep 3\n")
    stage.daemon.reload(hook=[{"on": "prepare", "run": [path]}])
    stage.migrate("s", "b", wait=False)
    slowest = max(each.ended - each.started for each in (stage.daemon.ctl("sessions") for _ in range(5)))
    case.ok(slowest < 1, "the daemon answers while a hook runs", "%.2f s" % slowest)
    case.equal(stage.daemon.sessions(), [], "and has moved nothing yet")
    # The next request takes the first one's place, and its hook ends with it.
    stage.daemon.reload(hook=[])
    answer, up, _ = stage.moved("s", "b")
    case.ok(answer.code == DONE and bool(up), "a newer request overtakes one that is being prepared",
            lambda: str(answer))
    first = stage.daemon.ctl("show", answer["id"] - 1, "--json")
    case.equal(first["outcome"], "superseded", "and the older one says so")
    case.equal(children(stage.daemon.pid), [], "its hook's process has ended")
    case.equal(stage.moved("s", "return")[0].code, DONE, "home again")


def good_hooks(case, stage, told):
    lab = stage.lab
    log, seen = lab.path("points"), lab.path("document")
    start = hooks.program(lab, "start", (
        "cat >%s\nenv | sort >%s.env\n"
        "setsid nsenter --net=/run/netns/%s %s %s B %d >/dev/null 2>&1 &\n"
        "echo $! >%s.pid\n"
        "until nsenter --net=/run/netns/%s ss -tlnH | grep -q :%d; do sleep 0.05; done\n")
        % (seen, seen, lab.namespace("b"), sys.executable, os.path.join(HERE, "server.py"), STARTED, seen,
           lab.namespace("b"), STARTED))
    point = hooks.program(lab, "point", "echo $NFQMIGD_HOOK $NFQMIGD_SERVICE $NFQMIGD_OUTCOME >>%s\nexit 1\n" % log)
    points = [{"on": on, "run": [point], "service": "bulk"} for on in ("switched", "completed", "failed")]
    to = endpoint(address("b"), STARTED)
    stage.daemon.reload(hook=points)
    answer = stage.daemon.migrate(stage.who("s"), stage.home("s"), to)
    case.equal(answer.code, FAILED, "without a prepare hook nothing listens there")
    case.equal(hooks.await_lines(log, 1), ["failed bulk failed"], "and the hook for failures is run")
    stage.daemon.reload(hook=[{"on": "prepare", "run": [start]}, {"on": "completed", "post":
                              "http://127.0.0.1:%d/done" % WEB}] + points)
    mark = stage.client.mark()
    answer = stage.daemon.migrate(stage.who("s"), stage.home("s"), to)
    up = stage.client.await_up("s", "B", mark, 5)
    try:
        case.ok(answer.code == DONE and bool(up),
                "a prepare hook starts the application before the to-host is asked; other hooks' failures undo nothing",
                lambda: str(answer))
        case.note("; ".join("%.1f ms %s" % (step["at"], step["step"]) for step in answer["timeline"]))
        with open(seen) as file:
            document = json.load(file)
        case.ok(document["id"] == answer["id"] and document["to"] == to and "outcome" not in document,
                "it is given the migration as JSON", json.dumps(document))
        environment = dict(line.partition("=")[::2] for line in hooks.lines(seen + ".env"))
        ours = {"NFQMIGD_HOOK": "prepare", "NFQMIGD_SERVICE": "bulk", "NFQMIGD_TO": to,
                "NFQMIGD_HOME": stage.home("s"), "NFQMIGD_CLIENT": stage.who("s")}
        case.equal({name: environment.get(name) for name in ours}, ours, "and in its environment")
        case.equal(hooks.await_lines(log, 3)[1:], ["switched bulk", "completed bulk proven"],
                   "the hooks at the switch and at the end are run, in this order")
        posted = [json.loads(line) for line in hooks.lines(told)]
        case.ok(any(where == "/done" and each["id"] == answer["id"] and each["outcome"] == "proven"
                    for where, each in posted), "and the webhook is told the outcome")
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            report = stage.daemon.ctl("show", answer["id"], "--json")
            failures = [step.get("detail", "") for step in report["timeline"] if step["step"] == "hook failed"]
            if len(failures) == 2:
                break
            time.sleep(0.05)
        case.ok(len(failures) == 2 and "completed" in failures[1], "their failures are in the timeline", str(failures))
        choose = hooks.program(lab, "choose", "echo '{\"to\": \"%s\"}'\n" % endpoint(address("d"), PORT))
        stage.daemon.reload(hook=[{"on": "prepare", "run": [choose]}])
        mark = stage.client.mark()
        answer, _ = stage.migrate("s", "b")
        case.ok(answer.code == DONE and bool(stage.client.await_up("s", "D", mark, 5)),
                "a prepare hook chooses the host", lambda: str(answer))
        case.equal(answer["to"], endpoint(address("d"), PORT), "and the report names it")
        # A child that holds the hook's output open is nobody's business.
        daemonic = hooks.program(lab, "daemonic", "sleep 20 &\necho $! >%s.child\n" % seen)
        stage.daemon.reload(hook=[{"on": "prepare", "run": [daemonic], "timeout": 5}])
        answer, up, _ = stage.moved("s", "return")
        case.ok(answer.code == DONE and bool(up) and answer.ended - answer.started < 4,
                "a hook that leaves a process behind is not waited for", lambda: str(answer))
        case.equal(len(running(seen + ".child")), 1, "and that process runs on")
    finally:
        for name in (seen + ".pid", seen + ".child"):
            for pid in running(name):
                os.kill(int(pid), 15)


def stops_at_once(case, stage):
    pids = stage.lab.path("last")
    path = hooks.program(stage.lab, "last-hook", "echo $$ >%s\nsleep 600\n" % pids)
    stage.daemon.reload(hook=[{"on": "prepare", "run": [path], "timeout": 600}])
    stage.migrate("s", "b", wait=False)
    hooks.await_lines(pids, 1)
    began = time.monotonic()
    code = stage.daemon.stop()
    took = time.monotonic() - began
    case.ok(code == 0 and took < 3, "a daemon that is told to stop does not wait for a hook",
            "%s after %.2f s" % (code, took))
    case.ok(gone(pids) and len(hooks.lines(pids)) == 1, "and ends it", lambda: str(running(pids)))
    case.ok(stage.client.works("s"), "the connection goes on")


def body(case):
    hosts = [address("b"), address("d")]
    with Stage([PORT], service=service([host + ":%d-%d" % (PORT, STARTED) for host in hosts])) as stage:
        told = hooks.webhook(stage.lab, WEB)
        stage.open("s", "bulk", PORT, sport=20001, rate=2000000)
        bad_hooks(case, stage)
        loop_is_free(case, stage)
        good_hooks(case, stage, told)
        stage.clean(case)
        stage.healthy(case)
        stops_at_once(case, stage)


if __name__ == "__main__":
    tap.main(body)
