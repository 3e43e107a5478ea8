#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client with eight connections to one home, three of them moved with scope connection: whenever it comes back from
other source ports, exactly three of its connections are on the to-host, also with connections in between that nobody
moved, and after the daemon has started anew. Both datapaths, both families; a hundred runs each datapath, or six. So they do
in a drain, in its canary, on the way back, and with a lifetime."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import foreign
import tap
from capture import Capture
from inspection import sockets
from lab import address, endpoint
from matrix import percentile
from stage import Stage
from traffic import PYTHON

PORT, OTHER, ENDINGS, RESETS, ALL, MOVED = 7000, 7001, 7100, 7999, 8, 3


class Group:
    """Eight connections of the client to home, of one family, and the three of them that move in each run."""

    def __init__(self, case, stage, datapath, family):
        self.case, self.stage, self.datapath, self.family = case, stage, datapath, family
        self.client, self.daemon = stage.client, stage.daemon
        self.names = ["%s%d-%d" % (datapath[0], family, number) for number in range(ALL)]
        self.home = endpoint(stage.lab.home(family), PORT)
        self.failures, self.plain, self.credit = [], [], []
        for name in self.names:
            self.client.open(name, "idle", stage.lab.home(family), PORT)

    def present(self, name):
        """The endpoint from which a connection comes now."""
        return endpoint(address("c", self.family), self.client.seen(name, "up")[-1]["sport"])

    def settled(self, *more, patience=8):
        """The host of every connection, once all of them have one."""
        deadline, names = time.monotonic() + patience, self.names + list(more)
        while True:
            said = self.client.stats()
            if all(said[name]["state"] == "up" for name in names) or time.monotonic() > deadline:
                return {name: said[name]["server"] if said[name]["state"] == "up" else said[name]["state"]
                        for name in names}
            time.sleep(0.01)

    def on_b(self):
        """Connections to B's service that B itself has, from this client's address of this family."""
        return sum(1 for each in sockets(self.stage.lab, "b")
                   if each[0] == "ESTAB" and each[2] == PORT and each[3] == address("c", self.family))

    def expect(self, run, what, wanted, *more):
        hosts = self.settled(*more)
        found, strange = list(hosts.values()).count("B"), set(hosts.values()) - {"A", "B"}
        deadline = time.monotonic() + 3
        while self.on_b() != found and time.monotonic() < deadline:
            time.sleep(0.02)
        if found != wanted or strange or self.on_b() != found:
            self.failures.append("run %d, %s: %d on B, which has %d, wanted %d: %s" % (
                run, what, found, self.on_b(), wanted, hosts))

    def again(self, names):
        """Drop these connections and open them again, from other ports, all at once; the times this took."""
        mark = self.client.mark()
        for name in names:
            self.client.order(do="cycle", id=name)
        ups = [self.client.await_up(name, mark=mark) for name in names]
        return [up["took"] * 1e3 for up in ups if up]

    def bound(self):
        return [session for session in self.daemon.sessions() or () if session["home"] == self.home
                and session["host"] != self.home]

    def run(self, number, choice, restart):
        client, lab = self.client, self.stage.lab
        self.plain += self.again(self.names[:2])
        moved = choice.sample(self.names, MOVED)
        for count, name in enumerate(moved):
            answer = self.daemon.migrate(self.present(name), self.home, address("b", self.family), "--datapath",
                                         self.datapath)
            if answer.code:
                self.failures.append("run %d, %s: %s" % (number, name, answer))
            if count == 0:
                # Of no concern: another port of home, and another host.
                for word, to, port in (("o", lab.home(self.family), OTHER), ("d", address("d", self.family), PORT)):
                    client.open(self.names[0] + word, "idle", to, port)
        self.expect(number, "moved", MOVED)
        ids = {session["id"]: session["client"] for session in self.bound()}
        if restart:
            self.daemon.stop()
            self.daemon.start()
        self.credit += self.again(self.names)
        self.expect(number, "all eight reconnect", MOVED)
        names = choice.sample(self.names, 3)
        self.again(names)
        self.again(names)
        self.expect(number, "some reconnect, twice", MOVED)

        # An unrelated connection to the same home: nobody is owed one, so it goes home.
        client.open(self.names[0] + "u", "idle", lab.home(self.family), PORT)
        self.expect(number, "another connection, nothing owed", MOVED, self.names[0] + "u")
        client.close(self.names[0] + "u")
        # And one together with a connection that comes back: whoever is first takes the credit.
        one = choice.choice([name for name, host in self.settled().items() if host == "B"])
        extra = self.names[0] + "v"
        client.order(do="cycle", id=one)
        client.open(extra, "idle", lab.home(self.family), PORT)
        self.expect(number, "another connection meanwhile", MOVED, extra)
        client.close(extra)
        time.sleep(0.05)
        at_home = [name for name, host in self.settled().items() if host == "A"]
        self.again(choice.sample(at_home, 2))
        self.expect(number, "two of home reconnect", MOVED)

        sessions = self.bound()
        if {session["id"] for session in sessions} != set(ids) or len(ids) != MOVED:
            self.failures.append("run %d: sessions %s have become %s" % (number, ids, sessions))
        if {session["client"] for session in sessions} == set(ids.values()):
            self.failures.append("run %d: no session has followed its client: %s" % (number, sessions))
        asked = []
        for place, session in enumerate(sessions):
            # By its number, or by the present port.
            words = (["return", "--session", session["id"]] if place % 2 else
                     ["return", "--client", session["client"], "--from", self.home])
            asked.append((session, self.daemon.ctl(*words, "--json")))
        for session, begun in asked:
            answer = self.daemon.ctl("show", begun["id"], "--wait", "--json")
            if answer.code or answer["session"] != session["id"]:
                self.failures.append("run %d, return of %s: %s" % (number, session, answer))
        self.expect(number, "home again", 0)
        for word in "od":
            if not client.works(self.names[0] + word):
                self.failures.append("run %d: an unrelated connection does not work" % number)
            client.close(self.names[0] + word)

    def close(self):
        for name in self.names:
            self.client.close(name)


# Connects, is reset, connects again; then says goodbye properly (FIN), connects a third time at once, and waits for the
# goodbye of the other side. Each line: the source port and the host's name, in the end what the second connection read.
GOODBYE = """
import socket, sys
def connection():
    made = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
    made.sendall(b"i" + bytes(8))
    print(made.getsockname()[1], made.recv(1).decode(), flush=True)
    return made
first = connection()
try:
    first.settimeout(10)
    first.recv(1)
except ConnectionResetError:
    pass
second = connection()
sys.stdin.readline()
second.shutdown(socket.SHUT_WR)
third = connection()
try:
    print(0, second.recv(1) or "EOF", flush=True)
except OSError as error:
    print(0, error, flush=True)
sys.stdin.readline()
"""


def goodbye(case, stage, datapath):
    lab, home = stage.lab, endpoint(stage.lab.home(), PORT)
    program = lab.spawn("c", [PYTHON, "-c", GOODBYE, lab.home(), str(PORT)], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE, text=True)

    def line():
        port, _, word = program.stdout.readline().strip().partition(" ")
        return int(port or -1), word

    first, _ = line()
    answer = stage.daemon.migrate(endpoint(address("c"), first), home, address("b"), "--datapath", datapath)
    second, host = line()
    case.ok(answer.code == 0 and host == "B" and second != first, "datapath %s: a client's connection is moved" % datapath,
            lambda: str(answer))
    with Capture(lab, "a") as at_home, Capture(lab, "c") as at_client:
        # B's program sleeps meanwhile: its kernel opens the third connection, but the second ends only when it wakes.
        stage.servers.each["b"].process.send_signal(signal.SIGSTOP)
        program.stdin.write("\n")
        program.stdin.flush()
        time.sleep(0.3)
        stage.servers.each["b"].process.send_signal(signal.SIGCONT)
        third, host = line()
        case.ok(host == "B" and third != second, "its next one, begun while that one ends, is on B too: %s" % host)
        case.equal(line()[1], "EOF", "and that one ends as it should")
        time.sleep(0.3)
    strays = [each for each in at_home.segments() if {each.sport, each.dport} & {second, third}]
    case.equal([str(each) for each in strays], [], "home sees no segment of either")
    foreign = [each for each in at_client.segments() if address("b") in (each.source, each.destination)]
    case.equal([str(each) for each in foreign], [], "the client sees no segment of B")
    session = next((each for each in stage.daemon.sessions() if each["host"] != each["home"]), None)
    case.equal(session and session["client"], endpoint(address("c"), third), "the session has the present port")
    program.stdin.write("\n")
    program.stdin.close()
    lab.stop(program)
    stage.daemon.ctl("return", "--session", session and session["id"], "--wait", "--json")


# Accepts, and resets when the greeting has come.
TRAITOR = """
import socket, struct, sys
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("", int(sys.argv[1])))
listener.listen(64)
print("ready", flush=True)
while True:
    peer = listener.accept()[0]
    peer.recv(100)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
"""


class Followed(Group):
    """The same connections, whose ports change while something else goes on with their sessions."""

    def on_hosts(self, patience=8):
        """How many connections there are by host, once all are up and nothing changes."""
        last, deadline = None, time.monotonic() + patience
        while time.monotonic() < deadline:
            found = sorted(self.settled().values())
            if found == last:
                break
            last = found
            time.sleep(0.1)
        return {host: found.count(host) for host in set(found)}

    def move(self, *words):
        for name in self.names[:MOVED]:
            answer = self.daemon.migrate(self.present(name), self.home, address("b"), "--datapath", self.datapath,
                                         *words)
            self.case.ok(answer.code == 0, "%s: moved to B" % self.datapath, lambda: str(answer))
        self.again(self.names)
        return {session["id"] for session in self.bound()}

    def awaited(self, number, holds=lambda now: False, patience=20):
        """The drain's report once that holds, or when it has ended."""
        deadline = time.monotonic() + patience
        while True:
            now = next(each for each in self.daemon.ctl("drains", "--json")["drains"] if each["id"] == number)
            if holds(now) or now.get("outcome") or time.monotonic() > deadline:
                return now
            time.sleep(0.05)

    def drained(self):
        """Members of a drain that have not had their turn, are on their way, and are in the canary."""
        case, what = self.case, "datapath %s: " % self.datapath
        ids = self.move()
        before = {session["client"] for session in self.bound()}
        words = ["drain", address("b"), "--to", address("d"), "--json"]
        number = self.daemon.ctl(*words, "--rate", "1", "--no-wait")["id"]
        self.again(self.names)
        self.again(self.names)
        case.ok(not before & {session["client"] for session in self.bound()}, what + "all ports change in a drain")
        done = self.awaited(number)
        case.equal([done.get("outcome"), done["moved"], done["gone"]], ["completed", MOVED, 0],
                   what + "a drain moves the sessions that it began with")
        case.equal([self.on_hosts(), {session["id"] for session in self.bound()}],
                   [{"A": ALL - MOVED, "D": MOVED}, ids], what + "and nothing else")

        # Each reset makes the client come back from another port, and the session follows.
        number = self.daemon.ctl("drain", address("d"), "--to", endpoint(address("b"), RESETS), "--canary", "1",
                                 "--no-wait", "--json")["id"]
        done = self.awaited(number)
        case.equal([done.get("outcome"), done["returned"]], ["failed", done["moved"]],
                   what + "a canary whose host resets is sent back too")
        case.equal([self.on_hosts(), {session["id"] for session in self.bound()}],
                   [{"A": ALL - MOVED, "D": MOVED}, ids], what + "to where it was")
        back = self.daemon.ctl("drain", address("d"), "--to", "home", "--json")
        case.equal([back.code, self.on_hosts()], [0, {"A": ALL}], what + "and home")

    def ended(self):
        """Lifetimes, whose sessions change ports before, and once more in a daemon that has started anew."""
        case, what = self.case, "datapath %s: " % self.datapath
        self.move("--for", "4s")
        self.daemon.kill()
        self.daemon.start()
        self.again(self.names)
        case.equal(self.on_hosts(), {"A": ALL - MOVED, "B": MOVED}, what + "sessions with a lifetime follow")
        deadline = time.monotonic() + 10
        while self.bound() and time.monotonic() < deadline:
            time.sleep(0.1)
        case.equal([self.bound(), self.on_hosts()], [[], {"A": ALL}],
                   what + "and go home when it is over, from whatever port")


def last_words(case, restarts):
    """The end of a connection is carried on when its session moves on meanwhile, and when the daemon starts anew."""
    what = "after a new daemon's start" if restarts else "after the next migration"
    with Stage([PORT], guard_client=60, reconnect_timeout=1) as stage:
        lab = stage.lab
        at = {host: foreign.listener(lab, host, address(host), ENDINGS) for host in "abd"}

        def connect(host):
            made = foreign.tcp(lab, "c", lab.home())
            made.settimeout(5)
            made.connect((lab.home(), ENDINGS))
            # The daemon has asked the host for a connection, too.
            while (accepted := at[host].accept())[1] != made.getsockname():
                accepted[0].close()
            return made, accepted[0], endpoint(*made.getsockname())

        def move(client, to):
            answer = stage.daemon.migrate(client, endpoint(lab.home(), ENDINGS), address(to), "--datapath", "queue")
            case.equal(answer.code, 0, "%s: moved to %s" % (what, to.upper()))

        first = connect("a")
        move(first[2], "b")
        second, at_b, _ = connect("b")
        at_b.settimeout(5)
        second.shutdown(socket.SHUT_WR)
        case.equal(at_b.recv(1), b"", what + ": the client has closed its end")
        third = connect("b")
        if restarts:
            stage.daemon.kill()
            stage.daemon.start()
        else:
            move(third[2], "d")
        with Capture(lab, "c") as at_client:
            at_b.sendall(b"bye")
            at_b.close()
            try:
                heard = second.recv(3), second.recv(1)
            except OSError as error:
                heard = error
            case.equal(heard, (b"bye", b""), what + ": it hears the host out")
            time.sleep(0.3)
        strays = [str(each) for each in at_client.segments() if address("b") in (each.source, each.destination)]
        case.equal(strays, [], what + ": the client sees no segment of B")


def interplay(case, stage):
    traitor = stage.lab.spawn("b", [PYTHON, "-c", TRAITOR, str(RESETS)], stdout=subprocess.PIPE)
    traitor.stdout.readline()
    for datapath in ("kernel", "queue"):
        group = Followed(case, stage, datapath, 4)
        group.drained()
        group.ended()
        group.close()


def body(case):
    runs = 50 if case.full else 3
    choice = random.Random(793)
    with Stage([PORT, OTHER]) as stage:
        for datapath in ("kernel", "queue"):
            for family in (4, 6):
                group = Group(case, stage, datapath, family)
                for number in range(runs):
                    group.run(number, choice, restart=number % 3 == 1)
                what = "datapath %s, IPv%d" % (datapath, family)
                case.ok(not group.failures, "%s: %d runs, each time exactly %d of the connections are on B" % (
                    what, runs, MOVED), lambda: "%d\n%s" % (len(group.failures), "\n".join(group.failures[:8])))
                case.note("%s: reconnect, ms, median and 95 %%: %.2f %.2f with nothing bound; %.2f %.2f all eight at "
                          "once, three of them with a credit" % (
                              what, *(percentile(each, part) for each in (group.plain, group.credit)
                                      for part in (0.5, 0.95))))
                case.ok(percentile(group.credit, 0.5) < 500, "%s: nobody waits for a repeated SYN" % what)
                group.close()
            goodbye(case, stage, datapath)
        interplay(case, stage)
        stage.clean(case)
        stage.healthy(case)
    for restarts in (False, True):
        last_words(case, restarts)


if __name__ == "__main__":
    tap.main(body)
