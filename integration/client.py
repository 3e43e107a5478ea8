#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP client for measurements: one thread, many sessions, each of which reconnects at once whatever happens.

Commands are JSON lines on stdin, events JSON lines on stdout; `t` is CLOCK_MONOTONIC in seconds.

    {"do": "open", "id": …, "mode": "rr|idle|bulk|tick|ask", "to": address, "port": …, "sport": 0|port, "think": ms,
     "rate": octets/s, "reconnect": true, "request": text}
                                 ask: send `request` to a server that is not ours and whose answer ends with its
                                 name, one capital letter, and a line feed (Redis, HTTP)
    {"do": "cycle", "id": …}     drop the connection (with a RST) and connect again: the floor of every migration
    {"do": "ping", "id": …}      on an idle session: send one octet, expect it back
    {"do": "close", "id": …}     {"do": "quit"}
    {"do": "stats", "reset": bool}   counters of all sessions; `gap` is the longest silence (ms) between answers

    up       the first byte of a connection, the server's name, came: server, sport, lost (seconds since the last byte
             of the connection before it), took (seconds since that connection was given up)
    answer   rr, ask: the first answer on a connection: server, last (when the last one before it came), blackout (ms
             between the two)
    down     the connection broke: error (an errno's name, or EOF)
    refused  connect() was refused       failed   connect() failed otherwise
    corrupt  data that nobody sent
"""

import errno
import heapq
import json
import os
import re
import select
import socket
import sys
import time

from server import CHUNK, GREETING, REQUEST, pattern

NAMED = re.compile(rb"([A-Z])\r?\n$")
LETTER = {"rr": b"r", "idle": b"i", "bulk": b"b", "tick": b"t"}
RETRY = 0.01  # seconds, after a refusal or while the source port is still taken


def say(**event):
    os.write(1, (json.dumps(event) + "\n").encode())


class Session:
    """What reconnects. `state`: connecting, greeting (no byte yet), up, waiting (for a retry), closed."""

    def __init__(self, poll, timers, order):
        self.poll, self.timers = poll, timers
        self.id, self.mode = order["id"], order["mode"]
        self.to, self.port, self.sport = order["to"], order["port"], order.get("sport", 0)
        self.think, self.rate = order.get("think", 2) / 1e3, order.get("rate", 0)
        self.reconnect = order.get("reconnect", True)
        self.request = order.get("request", "").encode()
        self.socket, self.state, self.due = None, "waiting", None
        self.server = self.last = self.last_answer = self.given_up = None
        self.connections = self.answers = self.total = self.pongs = 0
        self.gap = 0.0
        self.connect()

    def connect(self):
        self.received = self.sent = self.asked = 0
        self.buffer, self.due, self.server, self.pending = b"", None, None, None
        self.socket = socket.socket(socket.AF_INET6 if ":" in self.to else socket.AF_INET)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if self.sport:
                self.socket.bind(("", self.sport))
            number = self.socket.connect_ex((self.to, self.port))
        except OSError as error:
            number = error.errno
        self.state = "connecting"
        if number not in (0, errno.EINPROGRESS):
            return self.broke(number)
        self.poll.register(self.socket, select.EPOLLIN | select.EPOLLOUT)

    def event(self, events):
        if self.state in ("waiting", "closed"):
            return  # a command that came with the same poll has closed it
        try:
            if self.state == "connecting":
                number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    return self.broke(number)
                self.state = "greeting"
                self.connections += 1
                self.socket.send(self.request or GREETING.pack(LETTER[self.mode], self.number()))
                self.interest()
            if events & ~select.EPOLLOUT:
                self.read()
            if self.state == "up":
                self.write()
        except BlockingIOError:
            pass
        except OSError as error:
            self.broke(error.errno)

    def number(self):
        return self.rate if self.mode == "bulk" else int(self.think * 1e3) if self.mode == "tick" else 0

    def read(self):
        data = self.socket.recv(CHUNK)
        now = time.monotonic()
        if not data:
            return self.broke(None)
        if self.mode == "ask":
            self.buffer += data
            name = NAMED.search(self.buffer)
            if not name:
                return
            data = name.group(1) + self.buffer if self.state == "greeting" else self.buffer
        if self.state == "greeting":
            self.state, self.server, self.answered = "up", data[:1].decode("latin-1"), 0
            self.local = self.socket.getsockname()[1]
            say(event="up", id=self.id, t=now, server=self.server, sport=self.local,
                lost=self.last and now - self.last, took=self.given_up and now - self.given_up)
            data = data[1:]
        self.last = now
        self.total += len(data)
        if not data:
            return
        if self.mode in ("bulk", "tick"):
            if bytes(pattern(self.received, len(data))) != data:
                say(event="corrupt", id=self.id, t=now, offset=self.received)
        elif self.mode == "ask":
            self.answered_now(now)
        elif self.mode == "rr":
            self.answer(data, now)
        elif data.strip(b"p"):
            say(event="corrupt", id=self.id, t=now, offset=self.received)
        else:
            self.pongs += len(data)
            say(event="pong", id=self.id, t=now, server=self.server)
        self.received += len(data)

    def answer(self, data, now):
        self.buffer += data
        if len(self.buffer) < REQUEST:
            return
        if self.buffer != self.server.encode() + self.pending[1:]:
            say(event="corrupt", id=self.id, t=now, offset=self.received)
        self.answered_now(now)

    def answered_now(self, now):
        silence = now - self.last_answer if self.last_answer else 0
        self.gap = max(self.gap, silence)
        if not self.answered:
            say(event="answer", id=self.id, t=now, server=self.server, last=self.last_answer, blackout=silence * 1e3)
        self.last_answer, self.pending, self.buffer = now, None, b""
        self.answered += 1
        self.answers += 1
        if self.think:
            self.wake(self.think)

    def write(self):
        if self.mode == "rr" and self.pending is None and self.due is None:
            self.asked += 1
            self.pending = b"?" + self.asked.to_bytes(8, "big") + bytes(REQUEST - 9)
            self.socket.send(self.pending)
        elif self.mode == "ask" and self.pending is None and self.due is None:
            self.pending = self.request
            self.socket.send(self.request)
        elif self.mode == "bulk" and self.due is None:
            count = self.socket.send(pattern(self.sent, CHUNK if not self.rate else 16384))
            self.sent += count
            if self.rate:
                self.wake(count / self.rate)
        self.interest()

    def interest(self):
        sending = self.state == "up" and self.mode == "bulk" and self.due is None
        self.poll.modify(self.socket, select.EPOLLIN | (select.EPOLLOUT if sending else 0))

    def wake(self, delay):
        self.due = time.monotonic() + delay
        heapq.heappush(self.timers, (self.due, id(self), self))

    def timer(self):
        self.due = None
        if self.state == "waiting":
            self.connect()
        elif self.state == "up":
            self.event(select.EPOLLOUT)

    def broke(self, number):
        now = time.monotonic()
        name = errno.errorcode.get(number, str(number)) if number else "EOF"
        self.socket.close()
        if self.state == "connecting":
            if number in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                pass  # the old socket of this port is on its way out
            elif number == errno.ECONNREFUSED:
                say(event="refused", id=self.id, t=now)
            else:
                say(event="failed", id=self.id, t=now, error=name)
            self.state = "waiting"
            return self.wake(RETRY)
        say(event="down", id=self.id, t=now, error=name, server=self.server)
        self.given_up = now
        if self.reconnect:
            self.connect()
        else:
            self.state = "closed"

    def drop(self):
        """Close with a RST: the port is free again at once, and no TIME_WAIT is left behind."""
        if self.state in ("connecting", "greeting", "up"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()
        self.state, self.given_up = "closed", time.monotonic()

    def stats(self):
        return {"state": self.state, "server": self.server, "connections": self.connections, "answers": self.answers,
                "received": self.received, "sent": self.sent, "total": self.total, "gap": self.gap * 1e3,
                "silent": time.monotonic() - self.last if self.last else None}


class Client:
    def __init__(self):
        self.poll, self.timers, self.sessions = select.epoll(), [], {}
        self.poll.register(0, select.EPOLLIN)
        self.input = b""

    def run(self):
        while True:
            pause = max(0, self.timers[0][0] - time.monotonic()) if self.timers else -1
            events = self.poll.poll(pause)
            by_descriptor = {session.socket.fileno(): session for session in self.sessions.values()}
            # Commands come last: a socket that one opens may have the number of one that it has closed.
            for number, what in sorted(events, reverse=True):
                if number == 0:
                    self.command()
                elif number in by_descriptor:
                    by_descriptor[number].event(what)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                due, _, session = heapq.heappop(self.timers)
                if session.due == due:
                    session.timer()

    def command(self):
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)
        *lines, self.input = (self.input + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            do, session = order["do"], self.sessions.get(order.get("id"))
            if do == "open":
                self.sessions[order["id"]] = Session(self.poll, self.timers, order)
            elif do == "cycle":
                session.drop()
                session.connect()
            elif do == "ping":
                session.socket.send(b"p")
            elif do == "close":
                session.drop()
                del self.sessions[order["id"]]
            elif do == "stats":
                say(event="stats", t=time.monotonic(), sessions={s.id: s.stats() for s in self.sessions.values()})
                for each in self.sessions.values() if order.get("reset") else ():
                    each.gap = 0.0
            elif do == "quit":
                sys.exit(0)


if __name__ == "__main__":
    Client().run()
