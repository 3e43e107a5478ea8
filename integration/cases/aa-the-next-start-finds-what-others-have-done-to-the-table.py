#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon that starts after an orderly end takes the table as it was left, but for what packets and time-outs change; after
a crash, after a failure to write the journal, and whenever another program has changed anything, it compares everything. A
table that is deleted while a daemon runs is made again by it."""

import os
import re
import sqlite3
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import elements, table_exists
from lab import address
from product import DONE
from stage import Stage

PORT = 7000
# What was compared, and what came of it.
FOUND = re.compile(r"compared=(\w+).*table: (\d+) elements added, (\d+) removed")


def restarted(stage, end, between=lambda: None):
    """End the daemon, do something, start it: (what it compared, elements added, elements removed)."""
    end()
    between()
    stage.daemon.start()
    last = FOUND.findall(stage.daemon.tail())[-1]
    return last[0], int(last[1]), int(last[2])


def standing(stage):
    """The table's elements without their times."""
    return sorted((each[0], re.sub(r'"expires": \d+', "", each[1])) for each in elements(stage.lab))


def lasting(stage):
    """The same without what the kernel carries by itself, and without transits, which end."""
    if not table_exists(stage.lab):
        return None
    return [each for each in standing(stage) if not each[0].startswith(("carried", "divert4", "guard"))]


def nft(stage, *words):
    stage.lab.run("g", "nft", *words)


def forward(stage, value):
    stage.lab.run("g", "sysctl", "-qw", "net.ipv4.ip_forward=%d" % value)


def damage(stage):
    """Take the binding of the first session out of the table, as another program may."""
    nft(stage, "delete", "element", "inet", "nfqmigd", "connection4",
        "{ %s . 41000 . %s . %d }" % (address("c"), address("a"), PORT))


def body(case):
    with Stage([PORT]) as stage:
        daemon = stage.daemon
        stage.open("s", "rr", PORT, sport=41000)
        stage.open("q", "rr", PORT, sport=41001)
        answer, up, _ = stage.moved("s", "b", "--datapath", "kernel")
        case.ok(answer.code == DONE and bool(up), "a session is moved, datapath kernel", lambda: str(answer))
        answer, up, _ = stage.moved("q", "d", "--datapath", "queue")
        case.ok(answer.code == DONE and bool(up), "and another one, datapath queue", lambda: str(answer))

        # The guards of the second one still stand.
        transits = [session["transits"] for session in daemon.sessions()]
        found = restarted(stage, daemon.stop)
        case.equal(found[0], "learnt", "after an orderly end only what is learnt and in transit is compared")
        case.ok(sum(transits) > 0 and [session["transits"] for session in daemon.sessions()] == transits,
                "transits that still stand are known", lambda: "%s, then %s" % (transits, daemon.sessions()))
        found = restarted(stage, daemon.stop, lambda: time.sleep(5))
        case.ok(found[0] == "learnt" and all(session["transits"] == 0 for session in daemon.sessions()),
                "and those that have ended meanwhile are not", lambda: "%s %s" % (found, daemon.sessions()))
        involved = [each for each in elements(stage.lab) if each[0] == "involved4" and address("c") in each[1]]
        case.equal(involved, [], "nothing is looked up any more of what goes to the client")
        held = standing(stage)
        case.equal(restarted(stage, daemon.kill), ("everything", 0, 0), "a comparison of everything finds nothing to do")
        case.equal(standing(stage), held, "and the table is the same")

        for client in "sq":
            mark = stage.client.mark()
            stage.client.cycle(client, 0)
            up = stage.client.await_up(client, "BD"["sq".index(client)], mark, 5)
            case.ok(bool(up), "%s reconnects to its host" % client)
        case.equal(restarted(stage, daemon.stop)[0], "learnt", "packets that fill sets are no other program")

        case.equal(restarted(stage, daemon.stop, lambda: damage(stage)), ("everything", 1, 0),
                   "an element that was deleted while no daemon ran is found, and made again")
        # Nobody knows what the table had learnt: the next packets of the connection teach it, and the daemon asks.
        # Until then nothing passes: so the connection mostly outlives it (not when its host is the first to speak).
        found = restarted(stage, daemon.kill, lambda: (forward(stage, 0), nft(stage, "delete", "table", "inet", "nfqmigd")))
        forward(stage, 1)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not any(each[0] == "replies4" for each in elements(stage.lab)):
            time.sleep(0.1)
        time.sleep(0.5)
        answer, up, _ = stage.moved("q", "b", "--datapath", "queue")
        case.ok(found[0] == "nothing" and answer.code == DONE and bool(up) and len(answer["connections"]) == 1,
                "a connection is found and moved after the table was deleted", lambda: str(answer))
        answer, up, _ = stage.moved("q", "d", "--datapath", "queue")
        case.ok(answer.code == DONE and bool(up), "and back", lambda: str(answer))
        time.sleep(3)
        daemon.kill()
        daemon.start()
        held = standing(stage)
        damage(stage)
        case.equal(restarted(stage, daemon.stop), ("everything", 1, 0), "and so is one that was deleted while one ran")
        case.equal(standing(stage), held, "the table is the same")
        damage(stage)
        answer, up, _ = stage.moved("q", "b", "--datapath", "queue")
        case.ok(answer.code == DONE and bool(up), "a session is moved after another program's change", lambda: str(answer))
        # Nobody is translated to the host before any more: its number's two elements go at the next start.
        unused = 0 if daemon.settings.get("treatment") == "rewrite" else 2
        case.equal(restarted(stage, daemon.stop), ("everything", 1, unused), "which is found all the same")
        # The number of queues is in the rules: this table is replaced, and what packets have taught it goes over.
        mark = stage.client.mark()
        for queues in (3, 2, 3, 2):
            daemon.configure(queues=queues)
            found = restarted(stage, daemon.stop)
            time.sleep(0.5)
        lost = stage.client.all(lambda event: event["event"] == "down", mark)
        case.equal((found[0], lost), ("nothing", []), "a table of another layout is replaced, and connections go on")
        answer, up, _ = stage.moved("q", "d", "--datapath", "queue")
        case.ok(answer.code == DONE and bool(up) and len(answer["connections"]) == 1,
                "and one that user space carries is found and moved", lambda: str(answer))
        restarted(stage, daemon.stop)
        found = restarted(stage, daemon.stop, lambda: (nft(stage, "add", "table", "inet", "other"),
                                                       nft(stage, "delete", "table", "inet", "other")))
        case.equal(found, ("everything", 0, 0), "a change of another table is another program's too")
        case.equal(restarted(stage, daemon.stop)[0], "learnt", "after which the table is known again")

        # A firewall that is reloaded with "flush ruleset" takes our table with it, and nobody asks for anything afterwards.
        held, mark = lasting(stage), stage.client.mark()
        forward(stage, 0)
        nft(stage, "delete", "table", "inet", "nfqmigd")
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and not table_exists(stage.lab):
            time.sleep(0.05)
        again = lasting(stage)
        forward(stage, 1)
        case.equal(again, held, "a table that is deleted while a daemon runs is there again soon, with all that it had")
        case.ok(stage.client.works("s") and stage.client.works("q"), "the sessions work", daemon.tail)
        case.equal(stage.client.all(lambda event: event["event"] == "down", mark), [], "on their connections")
        for client in "sq":
            mark = stage.client.mark()
            stage.client.cycle(client, 0)
            case.ok(bool(stage.client.await_up(client, "BD"["sq".index(client)], mark, 5)),
                    "the next connection of %s goes to its host" % client)

        # It may also take rules only; a migration that needs them at once brings them back, and nothing else has to.
        for name, wait in (("t", 0), (None, 2.5)):
            nft(stage, "flush", "chain", "inet", "nfqmigd", "prerouting_nat")
            time.sleep(wait)
            if name:
                stage.open(name, "rr", PORT, sport=41002)
                answer, up, _ = stage.moved(name, "b", "--datapath", "kernel")
                case.ok(answer.code == DONE and bool(up), "a session is moved by rules that were taken out", lambda: str(answer))
            rules = stage.lab.run("g", "nft", "list", "chain", "inet", "nfqmigd", "prerouting_nat").stdout
            case.ok("map @connection4" in rules, "which are there again", rules)
        stage.moved("t", "return")
        stage.client.close("t")

        path = os.path.join(daemon.settings["state-directory"], "journal.sqlite")
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        answer, _ = stage.migrate("s", "d", "--datapath", "kernel")
        case.ok(answer.code != DONE, "a migration that cannot be written down fails", lambda: str(answer))
        database.execute("ROLLBACK")
        database.close()
        case.equal(restarted(stage, daemon.stop), ("everything", 0, 0), "and the next start trusts nothing")
        answer, up, _ = stage.moved("s", "return")
        case.ok(answer.code == DONE and bool(up), "home again", lambda: str(answer))
        answer, up, _ = stage.moved("q", "return")
        case.ok(answer.code == DONE and bool(up), "and the other one", lambda: str(answer))
        stage.clean(case)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
