# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways from a client to the host that serves it, each in a lab of its own, and the loads that are sent over them.

Every gateway has a stateful firewall, so every way pays for conntrack, and C's and Python's programs stand at the same
hooks as the daemon's queues do. One queue and one thread each: more would not help on few processors.
"""

import json
import os
import subprocess
import sys
import time

import inspection
from lab import HERE, Lab, LabError, address, endpoint
from product import Daemon, program
from traffic import Client, Servers

PORT = 7000
PEERS = os.path.join(os.path.dirname(HERE), ".build", "peers")
PYTHON_PEER = os.path.join(os.path.dirname(HERE), ".build", "python-peer")
HOME, HOST = endpoint(address("a"), PORT), endpoint(address("b"), PORT)

DNAT = """table ip bench_nat {
    chain prerouting { type nat hook prerouting priority dstnat; ip daddr %s tcp dport %d dnat to %s; }
}""" % (address("a"), PORT, address("b"))

# Behind the queue, at the hooks where the other ways rewrite: by the mark of the verdict, 1 to the host and 2 to the client.
MARKED = """table ip bench_mark {
    chain prerouting {
        type filter hook prerouting priority raw + 10;
        ip daddr set meta mark map { 1 : %s } tcp dport set meta mark map { 1 : %d }
    }
    chain postrouting {
        type filter hook postrouting priority mangle + 10;
        ip saddr set meta mark map { 2 : %s } tcp sport set meta mark map { 2 : %d }
    }
}""" % (address("b"), PORT, address("a"), PORT)


class Way:
    """One way, with its lab and its load server. `pid` is the program that carries the packets, or None."""

    name = title = None
    target = address("a")
    pid = None

    def __init__(self, offloads=True):
        self.lab = Lab(offloads=offloads)

    def __enter__(self):
        self.lab.__enter__()
        try:
            self.prepare()
            self.server = self.lab.spawn("b", ["taskset", "-c", str(1 % os.cpu_count()), os.path.join(PEERS, "load"), "serve", str(PORT)])
            time.sleep(0.2)
        except BaseException:
            self.lab.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *what):
        return self.lab.__exit__(*what)

    def prepare(self):
        """Do what makes packets to home arrive at B."""

    def alive(self):
        """Whether the program that carries the packets still runs."""
        return True

    def load(self, *words, timeout=60):
        """Run the load client; what it reports."""
        argv = ["taskset", "-c", "0", os.path.join(PEERS, "load"), words[0], self.target, str(PORT)]
        done = self.lab.run("c", *argv, *(str(word) for word in words[1:]), check=False, timeout=timeout)
        if done.returncode:
            raise LabError("%s: load %s: %s" % (self.name, " ".join(map(str, words)), done.stderr.strip()))
        return json.loads(done.stdout)

    @classmethod
    def missing(cls):
        """Why this way cannot be had here, or None."""
        return None


class Forward(Way):
    name, title = "forward", "plain forwarding, the client talks to B itself"
    target = address("b")


class KernelNAT(Way):
    name, title = "dnat", "the kernel's DNAT, an nft rule"

    def prepare(self):
        self.lab.nft("g", DNAT)


class Bound(Way):
    """A session bound by nfqmigd: a live one is moved from A to B, and ends there. What still stands of the migration (the
    client's old connection, stopped for `guard-client` seconds) is over before anything is measured."""

    datapath, settings = "queue", {}

    def start(self):
        return Daemon(self.lab, queues=1, guard_client=2, **self.settings).start()

    def prepare(self):
        self.daemon = self.start()
        self.pid = self.daemon.pid
        servers = Servers(self.lab, [PORT], hosts=("a", "b"))
        client = Client(self.lab)
        client.open("bind", "idle", address("a"), PORT)
        answer = self.daemon.migrate(address("c"), HOME, address("b"), "--datapath", self.datapath)
        if answer.code:
            raise LabError("cannot bind %s: %s" % (self.name, answer))
        client.close("bind")
        for process in (client.process, servers.each["a"].process, servers.each["b"].process):
            self.lab.stop(process)
        deadline = time.monotonic() + 20
        while self.leftovers():
            if time.monotonic() > deadline:
                raise LabError("the migration leaves something behind")
            time.sleep(0.2)

    def leftovers(self):
        """What of the migration still stands in the table."""
        return [name for name, _, expires in inspection.elements(self.lab) if name[:-1] in ("divert", "guard") and expires]

    def alive(self):
        return self.daemon.child.poll() is None


class Kernel(Bound):
    name, title = "kernel", "nfqmigd, datapath kernel"
    datapath = "kernel"

    def leftovers(self):
        # What says that somebody has to look at packets goes last.
        return [name for name, _, _ in inspection.elements(self.lab) if name[:-1] in ("divert", "guard", "involved", "answering")]


class Rewrite(Bound):
    name, title = "rewrite", "nfqmigd, datapath queue: rewritten in user space"
    settings = {"treatment": "rewrite"}


class Mark(Bound):
    name, title = "mark", "nfqmigd, datapath queue: judged once, carried by the kernel"
    settings = {"treatment": "mark"}


class Queued(Way):
    """A program of somebody else's, on queue 0."""

    def command(self):
        raise NotImplementedError

    def prepare(self):
        self.child = self.lab.spawn("g", self.command(), stdout=subprocess.DEVNULL)
        self.pid = self.child.pid
        deadline = time.monotonic() + 5
        while not self.lab.run("g", "cat", "/proc/net/netfilter/nfnetlink_queue", check=False).stdout.strip():
            if self.child.poll() is not None or time.monotonic() > deadline:
                raise LabError("%s does not serve its queue" % self.name)
            time.sleep(0.05)
        # Destinations before conntrack and sources after it, as conntrack has to see one view in both directions.
        self.lab.run("g", "iptables", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-d", address("a"), "--dport", str(PORT),
                     "-j", "NFQUEUE", "--queue-num", "0")
        self.lab.run("g", "iptables", "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "-s", address("b"), "--sport",
                     str(PORT), "-j", "NFQUEUE", "--queue-num", "0")

    def alive(self):
        return self.child.poll() is None


class Batched(Queued):
    name, title = "c", "a C program, as well as it can be done"

    def command(self):
        return [os.path.join(PEERS, "batched"), "0", "1", HOME, HOST]


class Marking(Batched):
    name, title = "c-mark", "the same program, which only decides: nft rewrites by the verdict's mark"

    def command(self):
        return super().command() + ["mark"]

    def prepare(self):
        self.lab.nft("g", MARKED)
        super().prepare()


class Textbook(Queued):
    name, title = "textbook", "a C program, as the library's manual has it"

    def command(self):
        return [os.path.join(PEERS, "textbook"), "0", HOME, HOST]


class Python(Queued):
    name, title = "python", "Python's NetfilterQueue"

    def command(self):
        return ["env", "PYTHONPATH=" + PYTHON_PEER, sys.executable, os.path.join(HERE, "peers", "textbook.py"), "0", HOME, HOST]

    @classmethod
    def missing(cls):
        done = subprocess.run([sys.executable, "-c", "import netfilterqueue"], capture_output=True, text=True,
                              env=dict(os.environ, PYTHONPATH=PYTHON_PEER))
        return "the package NetfilterQueue is not there" if done.returncode else None


WAYS = {way.name: way for way in (Forward, KernelNAT, Kernel, Rewrite, Mark, Batched, Marking, Textbook, Python)}


class Load:
    """One load: its words for the load client, and what its figures are counted in."""

    def __init__(self, name, title, unit, words, small=False):
        self.name, self.title, self.unit, self.words, self.small = name, title, unit, words, small

    def run(self, way, seconds):
        """Send it over a way; operations or gigabytes, and their rate."""
        if self.small:
            # The client's own stack must send segment by segment.
            way.lab.run("c", "ethtool", "-K", "eth0", "tso", "off", "gso", "off")
        try:
            report = way.load(*(seconds if word == "SECONDS" else word for word in self.words), timeout=seconds + 60)
        finally:
            if self.small and way.lab.offloads:
                way.lab.run("c", "ethtool", "-K", "eth0", "tso", "on", "gso", "on")
        amount = report["octets"] / 1e9 if self.unit == "GB" else report["operations"]
        rate = amount / report["seconds"] * (8 if self.unit == "GB" else 1)
        return dict(report, amount=amount, rate=rate)


LOADS = {load.name: load for load in (
    Load("up1", "bulk, 1 stream", "GB", ("bulk", 1, "SECONDS", "up")),
    Load("up8", "bulk, 8 streams", "GB", ("bulk", 8, "SECONDS", "up")),
    Load("down1", "bulk to client, 1 stream", "GB", ("bulk", 1, "SECONDS", "down")),
    Load("down8", "bulk to client, 8 streams", "GB", ("bulk", 8, "SECONDS", "down")),
    Load("pp1", "ping-pong, 1 connection", "round trip", ("pingpong", 1, "SECONDS", 64)),
    Load("pp64", "ping-pong, 64 connections", "round trip", ("pingpong", 64, "SECONDS", 64)),
    Load("small", "88-octet segments, 8 streams", "segment", ("segments", 8, "SECONDS", 100), small=True),
    Load("connect", "new connections, 16 at once", "connection", ("connect", 16, "SECONDS")))}
