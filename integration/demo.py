#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A demonstration: clients that know nothing of it are moved A → B → A → D → home under load, and keep working.

    demo.py [--load web|redis] [--datapath kernel|queue] [--passive] [--ipv6] [--connections N] [--pause SECONDS]

Needs root (network namespaces) and the built daemon; it leaves nothing behind.
"""

import argparse
import os
import sys
import time

import product
import services
from lab import Lab, LabError, address, endpoint
from matrix import percentile
from product import Daemon
from traffic import Client

PORT = 8080
HOPS = (("b", "A → B"), ("a", "B → A"), ("d", "A → D"), ("return", "D → home"))
TTY = sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def colour(code, text):
    return "\033[%sm%s\033[0m" % (code, text) if TTY else text


def bold(text):
    return colour("1", text)


def dim(text):
    return colour("2", text)


def good(text):
    return colour("32", text)


def bad(text):
    return colour("31;1", text)


def grouped(timeline):
    """The gateway's steps; many of one kind, as each connection of a session has its own, become one line."""
    groups = {}
    for entry in timeline:
        groups.setdefault(entry["step"], []).append(entry)
    lines = []
    for step, entries in groups.items():
        detail = entries[0].get("detail") or ""
        if len(entries) > 1:
            detail = "%d times, the last at %.2f" % (len(entries), entries[-1]["at"])
        lines.append((entries[0]["at"], step, detail))
    return lines


class Hop:
    """One migration: what the gateway says of it and what the probe saw."""

    def __init__(self, title, answer, down, up, longest):
        self.title, self.answer, self.longest = title, answer, longest
        asked = answer.requested

        def since(t):
            return (t - asked) * 1e3
        self.gateway = grouped(answer["timeline"] or [])
        self.client = []
        if up and up["last"]:
            self.client.append((since(up["last"]), "last answer from " + (down["server"] if down else "?")))
        if down:
            self.client.append((since(down["t"]), "connection reset"))
        if up:
            self.client.append((since(up["t"]), "first answer from " + up["server"]))
        self.blackout = up["blackout"] if up else None
        self.first = since(up["t"]) if up else None
        self.connections = len(answer["connections"] or [])

    @property
    def fine(self):
        return self.answer.code == 0 and self.first is not None

    def show(self):
        outcome = self.answer["outcome"] or "exit %d" % self.answer.code
        print("\n%s   %s, %d connections" % (bold(self.title), (good if self.fine else bad)(outcome), self.connections))
        print(dim("       ms  %-50s %s" % ("gateway", "client (probe)")))
        rows = [(at, "%s %s" % (step, dim(detail)) if detail else step, len(step) + len(detail) + bool(detail), "")
                for at, step, detail in self.gateway]
        rows += [(at, "", 0, what) for at, what in self.client]
        for at, left, width, right in sorted(rows):
            print("  %7.2f  %s%s %s" % (at, left, " " * max(0, 50 - width), right))
        if self.answer.err.strip():
            print(bad("  " + self.answer.err.strip()))
        if self.blackout is not None:
            print("  without an answer for %s" % bold("%.2f ms" % self.blackout))


def migrate(lab, daemon, client, family, letter, title, options):
    home, who = endpoint(address("a", family), PORT), address("c", family)
    server = "A" if letter == "return" else letter.upper()
    more = [] if letter == "return" else ["--datapath", options.datapath] + ["--passive"] * options.passive
    client.stats()
    mark = client.mark()
    answer = daemon.migrate(who, home, None if letter == "return" else address(letter, family), *more)
    up = client.find(lambda e: e["event"] == "answer" and e["id"] == "probe" and e["server"] == server, 5, mark)
    down = client.find(lambda e: e["event"] == "down" and e["id"] == "probe", 0, mark)
    time.sleep(options.pause)
    return Hop(title, answer, down, up, client.stats()["probe"]["gap"])


def summary(hops, floors, service, floor_count):
    answers, resets, errors = service.finish()
    print("\n" + bold("Summary"))
    print(dim("  %-10s %-9s %11s %12s %14s %17s" % (
        "migration", "outcome", "connections", "switched", "first answer", "without an answer")))
    for hop in hops:
        switched = next((at for at, step, _ in hop.gateway if step == "switched"), float("nan"))
        print("  %-10s %-9s %11d %9.2f ms %11.2f ms %14.2f ms" % (
            hop.title, hop.answer["outcome"] or "-", hop.connections, switched, hop.first or float("nan"),
            hop.blackout or float("nan")))
    print("  a plain reconnect on this path, for comparison: median %.2f ms of %d" % (
        percentile(floors, 0.5), floor_count))
    total = sum(answers.values())
    print("  load: %s answers (%s), %d connections reset and opened again" % (
        bold(str(total)), ", ".join("%s %d" % item for item in sorted(answers.items())), resets))
    wrong = {kind: count for kind, count in errors.items() if count}
    print("  errors that a reconnect did not mend: %s" % (bad(str(wrong)) if wrong else good("none")))
    return not wrong and all(hop.fine for hop in hops) and all(answers.get(name) for name in "ABD")


def run(options, service_class):
    family = 6 if options.ipv6 else 4
    with Lab() as lab:
        print(bold("nfqmigd moves live TCP sessions from host to host"))
        print("  client %s ── gateway ──┬── A %s (home)\n  %s├── B %s\n  %s└── D %s" % (
            address("c", family), address("a", family), " " * (len(address("c", family)) + 19), address("b", family),
            " " * (len(address("c", family)) + 19), address("d", family)))
        service = service_class(lab, PORT)
        client, daemon = Client(lab), Daemon(lab).start()
        home = address("a", family)
        print("  %s; %d connections and a probe that asks every millisecond,\n  all to %s, %s datapath%s" % (
            service.name, options.connections, bold(endpoint(home, PORT)), options.datapath,
            ", passive" if options.passive else ""))
        service.load("[%s]" % home if family == 6 and service_class is services.Web else home, options.connections)
        client.open("probe", "ask", home, PORT, think=1, request=service.request)
        floors = [client.cycle("probe") * 1e3 for _ in range(20)]
        time.sleep(options.pause)
        hops = []
        for letter, title in HOPS:
            hops.append(migrate(lab, daemon, client, family, letter, title, options))
            hops[-1].show()
        fine = summary(hops, floors, service, len(floors))
        daemon.stop()
        daemon.remove()
    print("  " + (good("Everything moved; the lab is taken down.") if fine else bad("Not everything went well.")))
    return 0 if fine else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", choices=sorted(services.CHOICES), help="default: the first whose programs are there")
    parser.add_argument("--datapath", choices=("kernel", "queue"), default="kernel")
    parser.add_argument("--passive", action="store_true", help="leave the client alone until it speaks")
    parser.add_argument("--ipv6", action="store_true")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between migrations")
    options = parser.parse_args()
    service_class = services.choose(options.load)
    for reason in (os.geteuid() and "it makes network namespaces: run it as root", product.missing(),
                   not service_class and "install nginx-light and wrk, or redis-server and redis-tools"):
        if reason:
            sys.exit("The demonstration cannot run: %s." % reason)
    try:
        sys.exit(run(options, service_class))
    except LabError as error:
        sys.exit("The demonstration failed: %s" % error)


if __name__ == "__main__":
    main()
