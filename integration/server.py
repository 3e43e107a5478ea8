#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A TCP server for measurements: one thread, many ports. It says its name as the first byte of every connection.

    server.py NAME PORT[,PORT...] [ADDRESS...]        (no address: all, IPv4 and IPv6)

The client then says what it wants in nine octets, a letter and a number in network order:

    r 0      requests of 64 octets, each answered by the same octets behind the server's name in the first one
    i 0      nothing; what comes is sent back
    b rate   bulk both ways: the server sends the pattern and checks the pattern that comes, octets per second or 0
    t ms     a tick of 100 octets of the pattern every so many milliseconds

It prints one JSON line when it is ready, and one for every connection whose data were not what was sent.
"""

import errno
import heapq
import json
import os
import random
import resource
import select
import socket
import struct
import sys
import time

GREETING = struct.Struct("!cQ")
REQUEST = 64
PERIOD = 65521  # a prime, so that no power-of-two slip goes unseen
CHUNK = 65536
PATTERN = random.Random(793).randbytes(PERIOD)
DOUBLE = memoryview(PATTERN + PATTERN[:CHUNK] + PATTERN[:CHUNK])


def pattern(offset, length):
    """`length` (at most CHUNK) octets of the endless pattern from `offset` on."""
    offset %= PERIOD
    return DOUBLE[offset:offset + length]


def say(**event):
    os.write(1, (json.dumps(dict(event, t=time.monotonic())) + "\n").encode())


class Connection:
    """One accepted connection; `out` is what could not be sent yet."""

    def __init__(self, peer_socket, peer, name):
        self.socket, self.peer = peer_socket, peer
        self.mode, self.number = None, 0
        self.head = b""
        self.out = bytearray(name)
        self.sent = self.received = 0
        self.due = None


class Server:
    def __init__(self, name, ports, addresses):
        self.name = name.encode()
        self.poll = select.epoll()
        self.listeners, self.connections, self.timers = {}, {}, []
        for address in addresses or ("0.0.0.0", "::"):
            for port in ports:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listener = socket.socket(family)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
                listener.listen(4096)
                listener.setblocking(False)
                self.listeners[listener.fileno()] = listener
                self.poll.register(listener, select.EPOLLIN)

    def run(self):
        say(event="ready", server=self.name.decode())
        while True:
            pause = max(0, self.timers[0][0] - time.monotonic()) if self.timers else -1
            for number, events in self.poll.poll(pause):
                if number in self.listeners:
                    self.accept(self.listeners[number])
                elif number in self.connections:
                    self.guarded(self.connections[number], events)
            now = time.monotonic()
            while self.timers and self.timers[0][0] <= now:
                _, number, connection = heapq.heappop(self.timers)
                if self.connections.get(number) is connection:
                    connection.due = None
                    self.guarded(connection, select.EPOLLOUT, tick=True)

    def accept(self, listener):
        while True:
            try:
                accepted, peer = listener.accept()
            except OSError as error:
                # A connection can be reset before it is accepted.
                if error.errno == errno.ECONNABORTED:
                    continue
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(accepted, peer, self.name)
            self.connections[accepted.fileno()] = connection
            self.poll.register(accepted, select.EPOLLIN)
            self.guarded(connection, select.EPOLLOUT)

    def guarded(self, connection, events, tick=False):
        try:
            if events & ~select.EPOLLOUT:
                self.read(connection)
            self.write(connection, tick)
        except BlockingIOError:
            pass
        except (OSError, EOFError):
            self.close(connection)

    def close(self, connection):
        self.connections.pop(connection.socket.fileno(), None)
        connection.socket.close()

    def read(self, connection):
        data = connection.socket.recv(CHUNK)
        if not data:
            raise EOFError
        if connection.mode is None:
            connection.head += data
            if len(connection.head) < GREETING.size:
                return
            mode, connection.number = GREETING.unpack_from(connection.head)
            connection.mode = mode.decode("latin-1")
            data = connection.head[GREETING.size:]
            connection.head = b""
        if connection.mode == "b":
            if data and bytes(pattern(connection.received, len(data))) != data:
                say(event="corrupt", server=self.name.decode(), peer=connection.peer[:2], offset=connection.received)
                raise EOFError
        elif connection.mode == "r":
            connection.head += data
            while len(connection.head) >= REQUEST:
                connection.out += self.name + connection.head[1:REQUEST]
                connection.head = connection.head[REQUEST:]
        elif connection.mode == "i":
            connection.out += data
        connection.received += len(data)

    def write(self, connection, tick):
        if connection.mode == "t" and connection.due is None:
            if tick and len(connection.out) < 1 << 20:
                connection.out += pattern(connection.sent, 100)
                connection.sent += 100
            self.wake(connection, connection.number / 1e3)
        if connection.out:
            del connection.out[:connection.socket.send(connection.out)]
        if connection.mode == "b" and not connection.out and connection.due is None:
            count = connection.socket.send(pattern(connection.sent, CHUNK if not connection.number else 16384))
            connection.sent += count
            if connection.number:
                self.wake(connection, count / connection.number)
        waiting = connection.out or (connection.mode == "b" and connection.due is None)
        self.poll.modify(connection.socket, select.EPOLLIN | (select.EPOLLOUT if waiting else 0))

    def wake(self, connection, delay):
        connection.due = time.monotonic() + delay
        heapq.heappush(self.timers, (connection.due, connection.socket.fileno(), connection))


# Two timers can be due at the same moment on the same descriptor.
Connection.__lt__ = lambda one, other: id(one) < id(other)

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Server(sys.argv[1], [int(port) for port in sys.argv[2].split(",")], sys.argv[3:]).run()
