#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Very many TCP connections of one process, each from an address and port of its own, which it keeps: a connection that
breaks is opened again at once from the same port.

    crowd.py HOME PORT COUNT FIRST-PORT BUSY ADDRESS...

The connections are spread over the addresses. The first BUSY of them ask all the time, a request every 50 ms; the
others are idle. Commands are JSON lines on stdin, events JSON lines on stdout; `t` is CLOCK_MONOTONIC in seconds.

    {"do": "state"}     → state: up (connections by server), waiting (those without a server)
    {"do": "history"}   → history, since the last time: downs (times), connections (the source of each), gaps (ms from the break to the first byte of the next
                          connection), silences (ms from a busy connection's last answer to the next one's first), refused,
                          corrupt, breaks (by error)
    {"do": "close"}     drop every connection with a RST
"""

import errno
import heapq
import json
import os
import resource
import select
import socket
import struct
import sys
import time

from server import GREETING, REQUEST

THINK = 0.05
RETRY = 0.01
AT_ONCE = 300  # connections that are being opened at the beginning


def say(**event):
    octets = (json.dumps(dict(event, t=time.monotonic())) + "\n").encode()
    while octets:
        octets = octets[os.write(1, octets):]


class Connection:
    __slots__ = ("source", "busy", "socket", "state", "server", "down", "answered", "due", "buffer", "asked")

    def __init__(self, source, busy):
        self.source, self.busy = source, busy
        self.socket, self.state, self.server = None, "new", None
        self.down = self.answered = self.due = None
        self.buffer, self.asked = b"", 0


class Crowd:
    def __init__(self, home, port, count, first, busy, addresses):
        self.home, self.family = (home, port), socket.AF_INET6 if ":" in home else socket.AF_INET
        self.poll, self.timers, self.input = select.epoll(), [], b""
        self.poll.register(0, select.EPOLLIN)
        self.by_descriptor, self.forget_history = {}, None
        self.all = [Connection((addresses[i % len(addresses)], first + i // len(addresses)), i < busy)
                    for i in range(count)]
        self.fresh, self.opening = iter(self.all), 0
        self.reset_history()

    def reset_history(self):
        self.history = {"downs": [], "connections": [], "gaps": [], "silences": [], "refused": 0, "corrupt": 0, "breaks": {}}

    def run(self):
        self.open_more()
        while True:
            pause = max(0, self.timers[0][0] - time.monotonic()) if self.timers else -1
            for number, what in self.poll.poll(pause, 256):
                if number == 0:
                    self.command()
                elif number in self.by_descriptor:
                    self.event(self.by_descriptor[number], what)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                due, _, each = heapq.heappop(self.timers)
                if each.due == due:
                    each.due = None
                    if each.state == "waiting":
                        self.connect(each)
                    elif each.state == "up":
                        self.ask(each)

    def open_more(self):
        while self.opening < AT_ONCE:
            each = next(self.fresh, None)
            if each is None:
                return
            self.opening += 1
            self.connect(each)

    def connect(self, each):
        each.socket = socket.socket(self.family)
        each.socket.setblocking(False)
        each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.buffer = b""
        try:
            each.socket.bind(each.source)
            number = each.socket.connect_ex(self.home)
        except OSError as error:
            number = error.errno
        if number not in (0, errno.EINPROGRESS):
            return self.broke(each, number)
        each.state = "connecting"
        self.by_descriptor[each.socket.fileno()] = each
        self.poll.register(each.socket, select.EPOLLIN | select.EPOLLOUT)

    def event(self, each, what):
        try:
            if each.state == "connecting":
                number = each.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    return self.broke(each, number)
                each.state = "greeting"
                each.socket.send(GREETING.pack(b"r" if each.busy else b"i", 0))
                self.poll.modify(each.socket, select.EPOLLIN)
            if what & ~select.EPOLLOUT:
                self.read(each)
        except BlockingIOError:
            pass
        except OSError as error:
            self.broke(each, error.errno)

    def read(self, each):
        data = each.socket.recv(65536)
        now = time.monotonic()
        if not data:
            return self.broke(each, None)
        if each.state == "greeting":
            each.state, each.server, data = "up", data[:1].decode("latin-1"), data[1:]
            if each.down:
                self.history["gaps"].append((now - each.down) * 1e3)
                if not each.busy:
                    each.down = None
            else:
                self.opening -= 1
                self.open_more()
            if each.busy:
                self.ask(each)
        if not each.busy:
            self.history["corrupt"] += bool(data)
            return
        each.buffer += data
        if len(each.buffer) >= REQUEST:
            if each.buffer != each.server.encode() + each.asked.to_bytes(8, "big") + bytes(REQUEST - 9):
                self.history["corrupt"] += 1
            if each.down and each.answered:
                self.history["silences"].append((now - each.answered) * 1e3)
                each.down = None
            each.answered, each.buffer = now, b""
            self.wake(each, THINK)

    def ask(self, each):
        each.asked += 1
        try:
            each.socket.send(b"?" + each.asked.to_bytes(8, "big") + bytes(REQUEST - 9))
        except OSError as error:
            self.broke(each, error.errno)

    def wake(self, each, delay):
        each.due = time.monotonic() + delay
        heapq.heappush(self.timers, (each.due, id(each), each))

    def broke(self, each, number):
        now = time.monotonic()
        self.by_descriptor.pop(each.socket.fileno(), None)
        each.socket.close()
        if each.state in ("up", "greeting"):
            name = errno.errorcode.get(number, str(number)) if number else "EOF"
            self.history["breaks"][name] = self.history["breaks"].get(name, 0) + 1
            self.history["downs"].append(now)
            self.history["connections"].append("%s:%d" % each.source)
            each.down = each.down or now
        elif each.state == "connecting" and number == errno.ECONNREFUSED:
            self.history["refused"] += 1
        each.due = None
        was, each.state, each.server = each.state, "waiting", None
        if was == "up":
            self.connect(each)
        else:
            self.wake(each, RETRY)

    def command(self):
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)
        *lines, self.input = (self.input + data).split(b"\n")
        for line in lines:
            do = json.loads(line)["do"]
            if do == "state":
                up = {}
                for each in self.all:
                    up[each.server or "-"] = up.get(each.server or "-", 0) + 1
                say(event="state", waiting=up.pop("-", 0), up=up)
            elif do == "history":
                say(event="history", **self.history)
                self.reset_history()
            elif do == "close":
                for each in self.all:
                    if each.socket:
                        self.by_descriptor.pop(each.socket.fileno(), None)
                        each.state = "closed"
                        try:
                            each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        except OSError:
                            pass
                        each.socket.close()


if __name__ == "__main__":
    if len(sys.argv) < 7:
        sys.exit(__doc__)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Crowd(sys.argv[1], *[int(word) for word in sys.argv[2:6]], sys.argv[6:]).run()
