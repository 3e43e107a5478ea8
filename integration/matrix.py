# SPDX-License-Identifier: GPL-3.0-or-later
"""Many migrations over every combination of load, source port, scope, family, datapath, time stamps and firewalls."""

import itertools
import random
import time

from inspection import descriptors, resident_kibibytes
from lab import LabError

DIMENSIONS = {
    "mode": ("idle", "rr", "bulk"),
    # How the client comes back, and how wide the binding is that has to catch it.
    "port": ("same/connection", "same/client", "new/client"),
    "family": (4, 6),
    "datapath": ("kernel", "queue"),
    "timestamps": (True, False),
    "firewalls": (False, True),
}
ROUND = ("b", "a", "d", "b", "return", "d", "return")
SHORT_ROUND = ("b", "a", "d", "return")


def combinations():
    return [dict(zip(DIMENSIONS, values)) for values in itertools.product(*DIMENSIONS.values())]


def pairwise(wanted):
    """At least `wanted` combinations in which every pair of values of two dimensions occurs: greedy, deterministic."""
    everything = combinations()
    random.Random(793).shuffle(everything)

    def pairs(combination):
        return set(itertools.combinations(sorted(combination.items()), 2))

    missing = set().union(*(pairs(combination) for combination in everything))
    chosen = []
    while missing or len(chosen) < wanted:
        best = max((c for c in everything if c not in chosen), key=lambda c: len(pairs(c) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def percentile(values, part):
    """The value below which `part` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def title(combination):
    return "%-4s %-15s IPv%d %-6s ts %-3s fw %-3s" % (
        combination["mode"], combination["port"], combination["family"], combination["datapath"],
        "on" if combination["timestamps"] else "off", "on" if combination["firewalls"] else "off")


class Row:
    """What one combination has shown: milliseconds of each migration and of each plain reconnect, and what failed."""

    def __init__(self, combination):
        self.combination = combination
        self.times, self.commands, self.floors, self.failures = [], [], [], []

    def __str__(self):
        def pair(values):
            return "%7.2f %7.2f" % (percentile(values, 0.5), percentile(values, 0.9))
        return "%s | %3d | %s | %s | %s%s" % (
            title(self.combination), len(self.times), pair(self.times), pair(self.floors), pair(self.commands),
            " | FAILED %d" % len(self.failures) if self.failures else "")


HEADER = "\n".join("%-46s | %3s | %-15s | %-15s | %s" % columns for columns in (
    ("load port/scope     family datapath ts fw", "n", "to first byte", "floor", "whole command, ms"),
    ("", "", " median     p90", " median     p90", " median     p90")))


class Matrix:
    """Runs combinations on a stage, each on a port of its own, and keeps a row for each."""

    def __init__(self, case, stage, patience=10, floors=5, floor_port=None):
        """`floor_port`: measure plain reconnects there, apart from the sessions that migrate. A RST that is lost leaves
        half a connection behind, which would be taken for one of theirs."""
        self.case, self.stage, self.patience, self.floor_count = case, stage, patience, floors
        self.floor_port = floor_port
        self.rows = []

    def run(self, numbered, hops):
        """`numbered`: (port, combination) pairs; the settings of the lab follow the combinations."""
        def settings(item):
            return item[1]["timestamps"], item[1]["firewalls"]
        for (timestamps, firewalls), group in itertools.groupby(sorted(numbered, key=settings), settings):
            self.stage.lab.set_timestamps(timestamps)
            self.stage.lab.set_host_firewalls(firewalls, hosts=("a", "c"))
            for port, combination in group:
                self.rows.append(self.combination(port, combination, hops))
        return self.rows

    def combination(self, port, combination, hops):
        row = Row(combination)
        same, _, scope = combination["port"].partition("/")
        name = "s%d" % port
        try:
            self.stage.open(name, combination["mode"], port, combination["family"], timeout=30, think=1,
                            sport=port + 20000 if same == "same" else 0, scope=scope, rate=20000000)
            self.measure_floor(row, name)
            for letter in hops:
                if not self.one(row, name, letter, combination["datapath"]):
                    break  # what would follow says nothing new
            self.stage.client.close(name)
        except LabError as error:
            row.failures.append("%s: %s" % (title(combination), error))
        return row

    def measure_floor(self, row, name):
        session = dict(self.stage.client.opened[name])
        if self.floor_port:
            name += "-floor"
            session.update(port=self.floor_port, sport=0, timeout=30)
            self.stage.client.open(name, **session)
        for _ in range(self.floor_count):
            took = self.stage.client.cycle(name, timeout=30)
            if took:
                row.floors.append(took * 1e3)
        if self.floor_port:
            self.stage.client.close(name)

    def one(self, row, name, letter, datapath):
        """One migration; whether the session has arrived."""
        more = () if letter == "return" else ("--datapath", datapath)
        answer, up, mark = self.stage.moved(name, letter, *more, patience=self.patience, timeout=60)
        where = "%s → %s: " % (title(row.combination), letter)
        if answer.code != 0 or answer["outcome"] not in ("proven", None):
            row.failures.append(where + str(answer)[:1500])
        if up:
            row.times.append((up["t"] - answer.requested) * 1e3)
            row.commands.append((answer.ended - answer.started) * 1e3)
        else:
            row.failures.append(where + "no first byte from the new host within %d s; %s" % (
                self.patience, self.stage.client.stats().get(name)))
        refused = self.stage.client.seen(name, "refused", "failed", mark=mark)
        if refused:
            row.failures.append(where + "the client was refused: %s" % refused)
        if up and not self.stage.client.works(name, self.patience):
            row.failures.append(where + "the session hangs on the new host: %s" % self.stage.client.stats().get(name))
        return bool(up)

    def report(self):
        self.case.note(HEADER)
        for row in self.rows:
            self.case.note(str(row))
        times = [value for row in self.rows for value in row.times]
        floors = [value for row in self.rows for value in row.floors]
        self.case.note("all together: %d migrations, to the first byte median %.2f ms, p90 %.2f ms, longest %.2f ms; "
                       "floor median %.2f ms, p90 %.2f ms" % (
                           len(times), percentile(times, .5), percentile(times, .9), max(times, default=0),
                           percentile(floors, .5), percentile(floors, .9)))

    def failures(self):
        return [failure for row in self.rows for failure in row.failures]


class Resources:
    """What the daemon holds: descriptors by kind, and memory."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.before, self.memory = descriptors(daemon.pid), resident_kibibytes(daemon.pid)

    def check(self, case, patience=6):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and self.grown():
            time.sleep(0.25)
        case.ok(not self.grown(), "the daemon holds no more descriptors than before", lambda: str(self.grown()))
        case.note("the daemon's resident memory: %d KiB before, %d KiB after" % (
            self.memory, resident_kibibytes(self.daemon.pid)))

    def grown(self):
        now = descriptors(self.daemon.pid)
        return {kind: (self.before.get(kind, 0), count) for kind, count in now.items()
                if count > self.before.get(kind, 0)}
