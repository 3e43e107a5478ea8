# SPDX-License-Identifier: GPL-3.0-or-later
"""What migrations and bindings cost: the part of bench.py that is about the control plane."""

import json
import os
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import time

import meter
from figures import number, ratio
from lab import Lab, LabError, address, endpoint
from many import CrowdOf
from product import Daemon, program
from stage import Stage
from ways import LOADS, PEERS, PORT, Bound, Kernel, Mark

KILLTCP = "/usr/libexec/ctdb/ctdb_killtcp"
PARTS = ("bindings", "bulk", "blackout")


def add_options(parser):
    parser.add_argument("--parts", default=",".join(PARTS), help="of the control plane")
    parser.add_argument("--bindings", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=10_000, help="idle ones that are moved in bulk")
    parser.add_argument("--migrations", type=int, default=40, help="one by one, of the blackout's and the bindings' parts")


def measure(options):
    parts = options.parts.split(",")
    return {"tables": [table for part in parts for table in globals()[part](options)]}


# ------------------------------------------------------------------------------------------------- bindings

def journal(path, count, datapath, family):
    """Write a journal with so many sessions of one connection each, all bound to B, as an earlier daemon would have."""
    home, host = endpoint(address("a", family), 9000), endpoint(address("b", family), 9000)
    clients = "198.19.%d.%d" if family == 4 else "2001:db8:ffff::%x:%x"

    def rows():
        for index in range(count):
            client = clients % (index // 50 // 250, 1 + index // 50 % 250)
            port = 20000 + index % 50
            yield "%s→%s" % (endpoint(client, port), home), json.dumps({
                "id": index + 1, "client": client, "clientPort": port, "home": home, "host": host, "datapath": datapath,
                "transits": []})
    database = sqlite3.connect(path)
    with database:
        database.executemany("INSERT INTO session VALUES (?, ?)", rows())
        database.execute("UPDATE counter SET value = ? WHERE name = 'migration'", (count,))
    database.close()


def starting(daemon, patience=120):
    """Start a daemon; seconds until its control socket answers, and seconds of CPU time until then."""
    daemon.configure()
    began = time.monotonic()
    with open(daemon.log, "ab") as log:
        daemon.child = daemon.lab.spawn("g", [program("nfqmigd"), "run", "--config", daemon.config], stdout=log, stderr=log)
    while time.monotonic() < began + patience:
        if daemon.child.poll() is not None:
            raise LabError("nfqmigd ended with %d:\n%s" % (daemon.child.returncode, daemon.tail()))
        with socket.socket(socket.AF_UNIX) as control:
            try:
                control.connect(daemon.socket)
                control.sendall(b"GET /v1/counters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if control.recv(16).startswith(b"HTTP/1.1 200"):
                    return time.monotonic() - began, meter.cpu_time(daemon.child.pid)
            except OSError:
                pass
        time.sleep(0.002)
    raise LabError("nfqmigd was not ready within %d s:\n%s" % (patience, daemon.tail()))


class Starts:
    """Starts of a daemon with a journal full of sessions, of which the last one goes on. `empty` is seconds; `cold` (the table
    has to be made), `crashed` (it is there, after a crash) and `warm` (the same, after an orderly end) are seconds and seconds
    of CPU time; `resident` and `kernel` are octets in all. Medians of the rounds."""

    def __init__(self, lab, datapath, count, rounds=1, family=4, **settings):
        self.daemon = daemon = Daemon(lab, queues=1, guard_client=2, **settings)
        state = daemon.settings["state-directory"]
        os.makedirs(state, exist_ok=True)
        self.empty = starting(daemon)[0]
        before = meter.resident(daemon.pid)
        daemon.stop()
        journal(os.path.join(state, "journal.sqlite"), count, datapath, family)
        kinds = {"cold": [], "crashed": [], "warm": []}
        resident, kernel = [], []
        for _ in range(rounds):
            daemon.remove()
            free = meter.kernel_memory()
            kinds["cold"].append(starting(daemon))
            time.sleep(1)
            kernel.append(meter.kernel_memory() - free)
            resident.append(meter.resident(daemon.pid) - before)
            daemon.kill()
            kinds["crashed"].append(starting(daemon))
            daemon.stop()
            kinds["warm"].append(starting(daemon))
            if len(resident) < rounds:
                daemon.stop()
        for kind, taken in kinds.items():
            setattr(self, kind, tuple(statistics.median(column) for column in zip(*taken)))
        self.resident, self.kernel = statistics.median(resident), statistics.median(kernel)

    def row(self, name, family, count):
        """What the table of the starts has."""
        return [name, "IPv%d" % family, number(self.empty)] + [
            "%s (%s)" % (number(wall), number(cpu)) for wall, cpu in (self.cold, self.crashed, self.warm)] + [
            number(octets / count) for octets in (self.resident, self.kernel)]


def filled(base):
    """A way whose daemon has a journal full of other sessions before it begins."""
    class Filled(base):
        def __init__(self, count, rounds=1):
            super().__init__(True)
            self.count, self.rounds = count, rounds

        def start(self):
            self.starts = Starts(self.lab, self.datapath, self.count, self.rounds, **self.settings)
            return self.starts.daemon

        # The other sessions keep what says that somebody has to look at packets.
        leftovers = Bound.leftovers
    return Filled


def one_by_one(way, count):
    """CPU seconds of the daemon for each of so many migrations of an idle connection, to B, D and home in turn."""
    before = meter.cpu_time(way.pid)
    letters = ["d", "b"]
    for index in range(count):
        answer = way.daemon.migrate(address("c"), endpoint(address("a"), PORT), address(letters[index % 2]), "--datapath",
                                    way.datapath)
        if answer.code:
            raise LabError(str(answer))
    return (meter.cpu_time(way.pid) - before) / count


def bindings(options):
    """What 100,000 sessions cost: memory, time to start, and the packets and migrations of another session."""
    memory = [["datapath", "family", "start, empty journal, s", "table to be made, s (CPU)", "after a crash, s (CPU)",
               "table adopted, s (CPU)", "daemon, octets a binding", "kernel, octets a binding"]]
    costs = [["datapath"] + [LOADS[load].title for load in ("pp64", "small")] + ["one migration (daemon)",
                                                                               "one migration, ms of CPU"]]
    for base in (Kernel, Mark):
        few, many = filled(base)(1), filled(base)(options.bindings, options.rounds)
        with few, many:
            memory.append(many.starts.row(base.name, 4, options.bindings))
            samples = {"pp64": [], "small": []}
            for load, found in samples.items():
                for _ in range(options.rounds):
                    pair = {}
                    for way in random.sample((few, many), 2):
                        with meter.Sample() as machine:
                            report = LOADS[load].run(way, options.seconds)
                        pair[way] = machine.cpu / report["amount"]
                    found.append(pair[many] / pair[few])
            pairs = []
            for way in (few, many):
                live(way)
            for _ in range(options.rounds):
                pair = {way: one_by_one(way, max(2, options.migrations // options.rounds)) for way in random.sample(
                    (few, many), 2)}
                pairs.append((pair[many], pair[few]))
            costs.append([base.name] + [ratio(sorted(found)) for found in samples.values()]
                         + [ratio(sorted(many / few for many, few in pairs)),
                            number(1e3 * statistics.median(many for many, _ in pairs))])
        with Lab(offloads=True) as lab:
            starts = Starts(lab, base.datapath, options.bindings, options.rounds, family=6, **base.settings)
            memory.append(starts.row(base.name, 6, options.bindings))
            starts.daemon.stop()
    return [{"title": "%d bindings in the journal (of scope connection)" % options.bindings, "rows": memory},
            {"title": "Cost with %d bindings, ratio to that with 1 (median and quartiles)" % options.bindings, "rows": costs}]


def live(way):
    """An idle connection of the client's, with hosts that answer, in place of the load server."""
    from traffic import Client, Servers
    way.lab.stop(way.server)
    way.servers = Servers(way.lab, [PORT], hosts=("a", "b", "d"))
    way.client = Client(way.lab)
    way.client.open("s", "idle", address("a"), PORT)


# ----------------------------------------------------------------------------------------------------- bulk

def bulk(options):
    """Migrations a second of many idle connections at once, beside a program that only closes them."""
    rows = [["what", "seconds", "a second", "CPU of the program, ms each", "CPU of the machine, ms each"]]
    count = options.connections

    def row(what, took, own, machine, done=count):
        rows.append([what, number(took), "%.0f" % (done / took)] + [
            number(spent * 1e3 / done) if done else "–" for spent in (own, machine)])

    def crowd_of(stage):
        crowd = CrowdOf(stage.lab, count, PORT, busy=0)
        if crowd.settled(120)["up"] != {"A": count}:
            raise LabError("not all connections came up: %s" % crowd.state())
        return crowd

    for datapath in ("kernel", "queue"):
        with Stage([PORT], datapath=datapath) as stage:
            crowd = crowd_of(stage)
            for what, words in (("drain to B", (address("a"), "--to", address("b"))),
                                ("drain home", (address("b"), "--to", "home"))):
                before = meter.cpu_time(stage.daemon.pid)
                with meter.Sample() as machine:
                    answer = stage.daemon.ctl("drain", *words, "--json", timeout=400)
                if answer.code or answer["moved"] != count:
                    raise LabError("drain: " + str(answer)[:500])
                crowd.settled(60)
                row("nfqmigd, datapath %s: %s, proven" % (datapath, what), answer.ended - answer.started,
                    meter.cpu_time(stage.daemon.pid) - before, machine.cpu)
            crowd.close()
    if not os.access(KILLTCP, os.X_OK):
        rows.append(["ctdb_killtcp: Debian's ctdb is not installed"] + ["–"] * 4)
        return [{"title": "%d idle connections" % count, "rows": rows}]
    for device, what in (("to-c", "the clients' ends"), ("to-a", "the host's ends")):
        # The gateway's stateful firewall would drop what it sends.
        with Stage([PORT], lab={"firewall": False}) as stage:
            crowd = crowd_of(stage)
            crowd.history()
            clients = re.findall(r"ESTABLISHED src=(\S+) dst=\S+ sport=(\d+)", stage.lab.run(
                "g", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", str(PORT)).stdout)
            home = endpoint(address("a"), PORT)
            ends = [(endpoint(ip, int(port)), home) for ip, port in clients]
            lines = "".join("%s %s\n" % (end[::-1] if device == "to-c" else end) for end in ends)
            children = os.times()
            with meter.Sample() as machine:
                done = subprocess.run(stage.lab.inside("g", [KILLTCP, device]), input=lines, capture_output=True, text=True,
                                      timeout=400)
            spent = os.times()
            # The host's ends are counted by what is left of them, the clients' by what they have seen.
            left = stage.lab.run("a", "ss", "-Htn", "state", "established", "sport = :%d" % PORT).stdout.count("\n")
            closed = len(crowd.history()["downs"]) if device == "to-c" else count - left
            row("ctdb_killtcp, no firewall: closes %d of %s, exit %d" % (closed, what, done.returncode), machine.wall,
                spent.children_user + spent.children_system - children.children_user - children.children_system, machine.cpu, closed)
    return [{"title": "%d idle connections at once" % count, "rows": rows}]


# ------------------------------------------------------------------------------------------------- blackout

def blackout(options):
    """How long one session is without answers, from its last answer to its first from the new host."""
    rows = [["round trip to each end", "datapath", "sum of the round trips needed, ms", "blackout, median ms", "90 %",
             "ratio", "floor: the client reconnects, ms"]]
    steps = [["round trip", "datapath", "step", "median ms since the request"]]
    for delay in (0, 20):
        for datapath in ("kernel", "queue"):
            with Stage([PORT], lab={"offloads": True}) as stage:
                if delay:
                    lengthen(stage.lab, delay)
                stage.open("s", "rr", PORT, think=1)
                floors = [event for event in (cycle(stage) for _ in range(10)) if event]
                taken, timeline = [], {}
                for index in range(options.migrations // 2):
                    time.sleep(0.1 + random.random() / 20)
                    mark = stage.client.mark()
                    answer = stage.daemon.migrate(stage.who("s"), stage.home("s"), address("bd"[index % 2]), "--datapath",
                                                  datapath)
                    if answer.code:
                        raise LabError(str(answer))
                    event = stage.client.find(lambda each: each["event"] == "answer" and each["id"] == "s", 10, mark)
                    taken.append(event["blackout"])
                    for step in answer["timeline"]:
                        timeline.setdefault(step["step"], []).append(step["at"])
                # From the switch on: challenge, answer and RST with the client; then its SYN, the greeting that it waits for,
                # and its request, each with its answer all the way to the host, which is two links of the same length.
                needed = 1.5 * delay + 3 * 2 * delay
                middle = statistics.median(taken)
                rows.append(["%d ms" % delay, datapath, number(needed), number(middle),
                             number(sorted(taken)[int(len(taken) * 0.9)]),
                             number(middle / needed) if needed else "–", number(statistics.median(floors))])
                order = sorted(timeline.items(), key=lambda item: statistics.median(item[1]))
                steps += [["%d ms" % delay, datapath, name, number(statistics.median(values))] for name, values in order]
    return [{"title": "Blackout of one migration under request and answer", "rows": rows},
            {"title": "When its steps are done", "rows": steps}]


def cycle(stage):
    """The blackout of a client that reconnects by itself, in ms."""
    mark = stage.client.mark()
    stage.client.cycle("s", 10)
    event = stage.client.find(lambda each: each["event"] == "answer" and each["id"] == "s", 10, mark)
    return event and event["blackout"]


def lengthen(lab, milliseconds):
    """Give each of the client's and the hosts' links a round trip of so many milliseconds: packets wait on their way in and
    on their way out, half of it each."""
    for host in "cabd":
        lab.spawn(host, [os.path.join(PEERS, "delay"), "0", str(milliseconds / 2)])
        for chain, side in (("PREROUTING", "-i"), ("POSTROUTING", "-o")):
            lab.run(host, "iptables", "-t", "mangle", "-A", chain, side, "eth0", "-p", "tcp", "-j", "NFQUEUE", "--queue-num", "0",
                    "--queue-bypass")
    time.sleep(0.3)
