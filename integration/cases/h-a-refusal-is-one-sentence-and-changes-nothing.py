#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot be done is refused with one clear sentence and the right exit code, and nothing has changed: not the
ruleset, not conntrack, not the connection."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack, ruleset
from lab import address, endpoint
from product import FAILED, UNKNOWN, UNREACHABLE, USAGE, program
from stage import Stage

PORT, CLOSED, BOUND = 7000, 7099, 7001


def state(stage):
    """All that a refusal must leave alone."""
    entries = sorted((entry.original, entry.reply, entry.state) for entry in conntrack(stage.lab)
                     if entry.original[0] == address("c"))
    return ruleset(stage.lab), entries


def sentence(text):
    """Whether this is one sentence for a person: one line, no trace, no name of a type, with an end."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return len(lines) == 1 and len(lines[0]) > 15 and lines[0].rstrip().endswith(".") and "Error(" not in text


def refused(case, stage, what, code, run, usage=False):
    before = state(stage)
    mark = stage.client.mark()
    answer = run()
    case.equal(answer.code, code, what + ": exit code %d" % code)
    text = answer.err
    if usage:
        # The argument parser adds how the command is used.
        text = text.strip().splitlines()[0] if text.strip() else ""
        case.ok(len(text) > 15, what + ": a sentence on stderr", lambda: str(answer))
    else:
        case.ok(sentence(text), what + ": one sentence on stderr", lambda: str(answer))
    case.note("%s → %s" % (what, text.strip().splitlines()[0] if text.strip() else "nothing"))
    case.equal(state(stage), before, what + ": table and conntrack are as before")
    case.equal(stage.client.seen("s", "down", mark=mark), [], what + ": the connection was not touched")
    case.ok(stage.client.works("s"), what + ": the connection works")


def ends(stage, *argv):
    """Run a program that should end by itself; (exit status or None when it does not end, stderr)."""
    try:
        done = stage.lab.run("g", *argv, check=False, timeout=20)
        return done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        return None, "it is still running after 20 s"


def without_capability(case, stage):
    socket = stage.lab.path("other.sock")
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", program("nfqmigd"), "run",
            "--socket", socket, "--state-directory", stage.lab.path("other-state")]
    before = ruleset(stage.lab)
    code, said = ends(stage, *argv)
    case.ok(code not in (0, None), "without CAP_NET_ADMIN: nfqmigd ends with a failure", said)
    case.ok(sentence(said) and "CAP_NET_ADMIN" in said,
            "without CAP_NET_ADMIN: one sentence that names the capability", said)
    case.equal(ruleset(stage.lab), before,
               "without CAP_NET_ADMIN: the ruleset is as before")


def body(case):
    with Stage([PORT, BOUND]) as stage:
        stage.open("s", "rr", PORT, sport=20001, think=20)
        stage.open("bound", "idle", BOUND, sport=20002)
        client, home, b = stage.who("s"), stage.home("s"), address("b")
        migrate = stage.daemon.migrate
        stage.moved("bound", "b")
        stage.leftover_elements(4)

        def check(what, code, *words, **options):
            refused(case, stage, what, code, lambda: migrate(*words), **options)

        check("an unknown connection", UNKNOWN, endpoint(address("c"), 9), home, b)
        check("an unknown client", UNKNOWN, "198.18.1.77", home, b)
        check("an unknown home", UNKNOWN, address("c"), endpoint(address("a"), 9999), b)
        check("home again of what was never moved", FAILED, client, home, None)
        check("a to-host that serves the session already, home", FAILED, client, home, address("a"))
        check("a to-host that serves the session already, B", FAILED, stage.who("bound"), stage.home("bound"), b)
        check("a to-host that does not listen", FAILED, client, home, endpoint(b, CLOSED))
        check("a to-host that does not exist", FAILED, client, home, "198.18.3.77")
        check("a malformed client", USAGE, "198.18.1.2.3:x", home, b, usage=True)
        check("a malformed home", USAGE, client, "nonsense", b, usage=True)
        check("a malformed to-host", USAGE, client, home, "198.18.3.256", usage=True)
        check("a home without a port", USAGE, client, address("a"), b, usage=True)
        check("a port too large", USAGE, client, home, b + ":70000", usage=True)
        check("families mixed", USAGE, client, home, address("b", 6), usage=True)
        check("a to-host that is a multicast address", USAGE, client, home, "224.0.0.1", usage=True)
        for words in (("migrate",), ("migrate", "--client", client), ("nonsense",),
                      ("migrate", "--client", client, "--from", home, "--to", b, "--datapath", "pigeon")):
            refused(case, stage, "usage: " + " ".join(words[:1] + words[-2:]), USAGE,
                    lambda: stage.daemon.ctl(*words), usage=True)
        refused(case, stage, "show of an unknown migration", UNKNOWN, lambda: stage.daemon.ctl("show", "987654"))

        without_capability(case, stage)
        # With a state directory of its own it knows nothing of the first one's sessions: it must not tidy them away.
        before = state(stage)
        code, said = ends(stage, program("nfqmigd"), "run", "--socket", stage.lab.path("other.sock"),
                          "--state-directory", stage.lab.path("second-state"))
        case.ok(code not in (0, None) and sentence((said.strip().splitlines() or [""])[-1]),
                "a second daemon refuses to run beside the first, in one sentence", "exit %s: %s" % (code, said))
        case.equal(state(stage), before, "and has changed nothing")
        case.ok(stage.daemon.ctl("sessions").code == 0, "and the first one still answers")

        stage.daemon.stop()
        refused(case, stage, "the daemon is not running", UNREACHABLE, lambda: migrate(client, home, b))
        with open(stage.daemon.config, "a") as file:
            file.write("colour = \"green\"\n")
        code, said = ends(stage, program("nfqmigd"), "run", "--config", stage.daemon.config)
        case.ok(code not in (0, None) and sentence(said) and "colour" in said,
                "an unknown setting is refused by name", said)


if __name__ == "__main__":
    tap.main(body)
