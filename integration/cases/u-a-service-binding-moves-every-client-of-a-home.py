#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scope service: one command moves every client of a home, and who comes later goes to the new host too; a narrower binding
stays and wins. Both datapaths, both families; at the end everybody is home and nothing is left. What the kernel has learnt from
connections goes with them."""

import os
import select
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from foreign import abort, tcp
from inspection import elements, sockets
from lab import address, endpoint
from rawhttp import request
from server import GREETING
from stage import Stage

PORT = 7000
ADDRESSES, EACH = 6, 5
SHORT = 600


def client_address(family, index):
    """Addresses of the client's host beside its first one."""
    return "198.18.1.%d" % (100 + index) if family == 4 else "2001:db8:1::%d" % (100 + index)


class Member:
    """A client with one connection at a time; `port` 0: a new one for each. `server`: the name that it was told last."""

    def __init__(self, crowd, ip, port):
        self.crowd, self.ip, self.port = crowd, ip, port
        self.connections, self.errors = 0, []
        self.connect()

    def connect(self):
        deadline = time.monotonic() + 10
        self.server = None
        while True:
            self.socket = tcp(self.crowd.lab, "c", self.ip, self.port, self.ip)
            self.socket.settimeout(5)
            try:
                self.socket.connect((self.crowd.home, PORT))
                self.socket.send(GREETING.pack(b"i", 0))
                self.server = self.socket.recv(1).decode()
                self.connections += 1
                return
            except OSError as error:
                self.socket.close()
                if time.monotonic() > deadline:
                    self.errors.append("connect: %r" % error)
                    return
                time.sleep(0.01)

    def works(self):
        """An octet there and back."""
        with self.crowd.lock:
            try:
                self.socket.send(b"p")
                return self.socket.recv(1) == b"p"
            except OSError as error:
                return "no: %r" % error


class Crowd:
    """Many clients in one thread of this process, each of which connects again at once when it is reset."""

    def __init__(self, lab, family):
        self.lab, self.home, self.members = lab, lab.home(family), []
        self.lock, self.over = threading.Lock(), False
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.over:
            with self.lock:
                poll = select.poll()
                by_number = {each.socket.fileno(): each for each in self.members if each.socket.fileno() >= 0}
                for number in by_number:
                    poll.register(number, select.POLLIN)
                for number, _ in poll.poll(0):
                    member = by_number[number]
                    try:
                        if member.socket.recv(1, socket.MSG_PEEK):
                            continue
                        member.errors.append("EOF")
                    except ConnectionResetError:
                        pass
                    except OSError as error:
                        member.errors.append(repr(error))
                    member.socket.close()
                    member.connect()
            time.sleep(0.002)

    def add(self, ip, port=0):
        with self.lock:
            self.members.append(Member(self, ip, port))
        return self.members[-1]

    def served(self, members, server, patience=10):
        """Who of these is not served by `server` after `patience` seconds at most."""
        deadline = time.monotonic() + patience
        while True:
            others = [(each.ip, each.port, each.server) for each in members if each.server != server]
            if not others or time.monotonic() > deadline:
                return others + [(each.ip, each.port, each.works()) for each in members if each.works() is not True]
            time.sleep(0.01)

    def end(self):
        self.over = True
        self.thread.join()
        for each in self.members:
            abort(each.socket)


def one(case, stage, family, datapath):
    what = "IPv%d, %s datapath" % (family, datapath)
    lab, daemon = stage.lab, stage.daemon
    home, b, d = endpoint(lab.home(family), PORT), address("b", family), address("d", family)
    other = "queue" if datapath == "kernel" else "kernel"
    crowd = Crowd(lab, family)
    for index in range(ADDRESSES):
        for number in range(EACH):
            crowd.add(client_address(family, index), 30000 + number if number % 2 else 0)
    crowd.thread.start()
    try:
        case.equal(crowd.served(crowd.members, "A"), [], what + ": %d clients at home" % len(crowd.members))
        # The last address is bound by itself, and one connection of the one before it.
        narrow = [each for each in crowd.members if each.ip == client_address(family, ADDRESSES - 1)]
        lone = next(each for each in crowd.members if each.ip == client_address(family, ADDRESSES - 2) and each.port)
        answer = daemon.migrate(narrow[0].ip, home, d, "--datapath", other)
        case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": one client's binding to D, " + other)
        answer = daemon.migrate(endpoint(lone.ip, lone.port), home, d, "--datapath", datapath)
        case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": one connection's binding to D, " + datapath)
        apart = narrow + [lone]
        if datapath == "queue":
            # The SYNs of its client wait for a decision, so user space cannot carry them for the service as well.
            case.equal(crowd.served([lone], "D"), [], what + ": it is on D")
            refused = daemon.ctl("migrate", "--from", home, "--to", b, "--scope", "service", "--datapath", datapath)
            case.ok(refused.code == 1 and "scope connection" in refused.err, what + ": the service has to wait for it",
                    lambda: str(refused))
            case.equal(daemon.migrate(endpoint(lone.ip, lone.port), home, None).code, 0, what + ": it returns home")
            case.equal(crowd.served([lone], "A"), [], what + ": it is at home")
            apart = narrow
        rest = [each for each in crowd.members if each not in apart]
        case.equal(crowd.served(apart, "D"), [], what + ": they are on D")
        before = [each.connections for each in apart]

        answer = daemon.ctl("migrate", "--from", home, "--to", b, "--scope", "service", "--datapath", datapath, "--wait",
                            "--json")
        case.equal((answer.code, answer["outcome"], answer["scope"], answer["client"]), (0, "proven", "service", "any"),
                   what + ": the service is moved, proven")
        case.equal(len(answer["connections"] or ()), len(rest), what + ": with as many connections as there were")
        case.equal(crowd.served(rest, "B"), [], what + ": everybody is on B")
        if answer["finishedAt"]:
            case.note("%d connections in %.0f ms from request to report" % (
                len(rest), (answer["finishedAt"] - answer["requestedAt"]) * 1e3))
        case.equal(crowd.served(apart, "D"), [], what + ": except those with narrower bindings, who are on D")
        case.equal([each.connections for each in apart], before, what + ": and were not reset")
        case.equal([each for each in sockets(lab, "a") if each[2] == PORT], [], what + ": A has no connection left")
        newcomer = crowd.add(client_address(family, ADDRESSES))
        case.equal(crowd.served([newcomer], "B"), [], what + ": a new client is on B")
        again = crowd.add(narrow[0].ip)
        case.equal(crowd.served([again], "D"), [], what + ": a new connection of the client bound to D is on D")
        listed = sorted((each["scope"], each["client"]) for each in daemon.sessions() if each.get("datapath"))
        case.equal(listed, sorted([("service", "any"), ("client", narrow[0].ip)] + [
            ("connection", endpoint(each.ip, each.port)) for each in apart if each is lone]), what + ": all bindings are listed")
        told = [request(daemon.socket, "GET", "/v1/explain?client=%s&home=%s" % (each.ip, home)).json
                for each in (newcomer, narrow[0])]
        case.equal([(each.get("session") or {}).get("scope") for each in told], ["service", "client"],
                   what + ": explain names the binding that counts, the service's or a client's own")
        name = "service {" if datapath == "kernel" else "divert_service {"
        case.ok(any(each.startswith(name) for each in told[0]["elements"]) and endpoint(b, PORT) in told[0]["newConnection"],
                what + ": and the service's element and host", lambda: str(told[0]))

        refused = daemon.migrate(narrow[0].ip, home, None)
        case.ok(refused.code == 1 and "scope service" in refused.err, what + ": no client is sent home alone",
                lambda: str(refused))
        # One client leaves the service's host for another one.
        leaving = [each for each in rest if each.ip == client_address(family, 0)]
        answer = daemon.migrate(leaving[0].ip, home, d, "--datapath", datapath)
        case.equal((answer.code, answer["outcome"], len(answer["connections"] or ())), (0, "proven", EACH),
                   what + ": one of its clients is moved on to D")
        case.equal(crowd.served(leaving, "D"), [], what + ": it is on D")
        stay = [each for each in rest if each not in leaving] + [newcomer]
        case.equal(crowd.served(stay, "B"), [], what + ": the others are where they were")

        answer = daemon.ctl("return", "--from", home, "--scope", "service", "--wait", "--json")
        case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": the service returns home, proven")
        case.equal(crowd.served(stay, "A"), [], what + ": everybody is at home again")
        case.equal(crowd.served(apart + leaving + [again], "D"), [], what + ": except those with narrower bindings")
        newcomer = crowd.add(client_address(family, ADDRESSES + 1))
        case.equal(crowd.served([newcomer], "A"), [], what + ": a new client is at home")
        for client in [narrow[0].ip, leaving[0].ip] + [endpoint(each.ip, each.port) for each in apart if each is lone]:
            answer = daemon.migrate(client, home, None)
            case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": %s returns home" % client)
        case.equal(crowd.served(crowd.members, "A"), [], what + ": now everybody is")
        case.equal([each.errors for each in crowd.members if each.errors], [], what + ": nobody saw anything but resets")
    finally:
        crowd.end()


def early(case, stage, datapath):
    """A service that has no client yet can be bound; and survives the daemon."""
    what = "a service without clients, " + datapath
    home, b = endpoint(stage.lab.home(4), PORT), address("b")
    answer = stage.daemon.ctl("migrate", "--from", home, "--to", b, "--client", "any", "--datapath", datapath, "--wait",
                              "--json")
    case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": it is bound")
    crowd = Crowd(stage.lab, 4)
    crowd.thread.start()
    try:
        first = crowd.add(client_address(4, 0))
        second = crowd.add(client_address(4, 0))
        case.equal(crowd.served([first, second], "B"), [], what + ": its first client is on B, with two connections")
        stage.daemon.kill()
        stage.daemon.start()
        case.equal(crowd.served([first], "B"), [], what + ": and is still with a new daemon")
        case.equal(crowd.served([crowd.add(client_address(4, 1))], "B"), [], what + ": so is the next one")
        case.equal(first.connections, 1, what + ": on the same connection")
        answer = stage.daemon.ctl("return", "--from", home, "--client", "any", "--wait", "--json")
        case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": it returns home")
        case.equal(crowd.served(crowd.members, "A"), [], what + ": with both")
    finally:
        crowd.end()
    stage.clean(case, ": " + what)


def short(case, stage, family):
    """What the kernel has learnt from a connection's packets goes when the connection has gone, and not before."""
    what = "IPv%d, %d short connections" % (family, SHORT)
    lab, daemon = stage.lab, stage.daemon
    home, b = endpoint(lab.home(family), PORT), address("b", family)
    answer = daemon.ctl("migrate", "--from", home, "--to", b, "--scope", "service", "--datapath", "queue", "--wait", "--json")
    case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": the service is bound")
    crowd = Crowd(lab, family)

    def learnt(purpose="replies"):
        return [each[1] for each in elements(lab) if each[0] == "%s%d" % (purpose, family)]

    def known():
        return daemon.ctl("counters", "--json")["replies"]

    try:
        # One says nothing all the time, the other one does.
        silent, busy = crowd.add(client_address(family, 0)), crowd.add(client_address(family, 1))
        # A port that was reset may be taken twice: hence a few less.
        before = known()
        for index in range(SHORT):
            each = Member(crowd, client_address(family, 2 + index % 4), 0)
            # Every second one ends with a RST, the others as they should: these are in TIME_WAIT.
            if index % 2:
                abort(each.socket)
            else:
                each.socket.close()
        began = time.monotonic()
        port = silent.socket.getsockname()[1]
        case.ok(len(learnt()) >= SHORT - 20 and len(learnt("icmp_peer")) == 6, what + ": each has left its reply",
                lambda: "%d, %d" % (len(learnt()), len(learnt("icmp_peer"))))
        case.ok(known()["learnt"] >= SHORT - 20, what + ": and the counters say so", lambda: str(known()))
        lost = []
        while len(learnt()) > 2 and time.monotonic() < began + 100:
            lost += [busy.works()] if busy.works() is not True else []
            time.sleep(1)
        case.equal(lost, [], what + ": a connection goes on all the time")
        left = learnt()
        case.ok(len(left) == 2 and any(", %d]" % port in each for each in left),
                what + ": their replies are gone, those of connections that are there are not", lambda: "%d: %s" % (
                    len(left), left[:5]))
        case.note("%.0f s after the last one" % (time.monotonic() - began))
        case.equal(len(learnt("icmp_peer")), 2, what + ": so are their clients")
        case.ok(known()["learnt"] == 2 and known()["ended"] >= before["ended"] + SHORT - 20, what + ": the daemon knows that",
                lambda: "%s, %s" % (before, known()))
        case.equal(silent.works(), True, what + ": who was silent still has its connection")
        case.equal(crowd.served([crowd.add(client_address(family, 2))], "B"), [], what + ": and who comes again is on B")
        answer = daemon.ctl("return", "--from", home, "--scope", "service", "--wait", "--json")
        case.equal((answer.code, answer["outcome"]), (0, "proven"), what + ": the service returns home, proven")
        case.equal(len(answer["connections"] or ()), 3, what + ": with the connections that are there")
    finally:
        for each in crowd.members:
            abort(each.socket)
    stage.clean(case, ": " + what)


def refusals(case, stage):
    home, b = endpoint(stage.lab.home(4), PORT), address("b")
    before = elements(stage.lab)
    for words, code, says in (
            (("--client", address("c"), "--scope", "service"), 2, "leave --client out"),
            (("--client", "any", "--scope", "client"), 2, "leave --client out"),
            ((), 2, "--scope service")):
        answer = stage.daemon.ctl("migrate", "--from", home, "--to", b, *words)
        case.ok(answer.code in (code, 64) and says in answer.err, "refused: " + " ".join(words or ("no client",)),
                lambda: str(answer))
    answer = stage.daemon.ctl("return", "--from", home, "--scope", "service")
    case.ok(answer.code == 1, "a service at home does not return", lambda: str(answer))
    case.equal(elements(stage.lab), before, "a refusal changes nothing")


def body(case):
    with Stage([PORT]) as stage:
        for family, device in ((4, "eth0"), (6, "eth0")):
            for index in range(ADDRESSES + 2):
                stage.lab.run("c", "ip", "-%d" % family, "address", "add", "%s/%d" % (
                    client_address(family, index), 24 if family == 4 else 64), "dev", device)
        for datapath in ("kernel", "queue"):
            for family in (4, 6):
                one(case, stage, family, datapath)
                stage.clean(case, ": IPv%d, %s" % (family, datapath))
            early(case, stage, datapath)
        short(case, stage, 4)
        refusals(case, stage)
        stage.clean(case)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
