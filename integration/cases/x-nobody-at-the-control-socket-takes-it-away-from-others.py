#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody who may use the control socket, and means harm, takes neither the daemon nor the socket away from others:
thousands of idle connections, requests without an end, bodies up to the limit on every connection, requests behind one
another, streams that nobody reads. Migrations go on meanwhile, and descriptors and memory stay in their bounds."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from lab import address
from rawhttp import answers, request, split
from stage import Stage

PORT = 7000
NOBODY = 65534
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /v1/migrations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
# What the limits on connections and bodies add up to, with room for everything else that the daemon holds.
DESCRIPTORS, KIBIOCTETS = 300, 200 << 10

# Runs as another user: connects as often as it is told, sends that, says how often it could, and holds on.
CROWD = '''
import os, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
os.setgroups([])
os.setgid(int(sys.argv[4]))
os.setuid(int(sys.argv[4]))
held, octets = [], bytes.fromhex(sys.argv[3]) + b" " * int(sys.argv[5])
deadline = time.monotonic() + 10
while len(held) < int(sys.argv[2]) and time.monotonic() < deadline:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(0.5)
    try:
        client.connect(sys.argv[1])
        held.append(client)
        client.settimeout(0.05)
        client.sendall(octets)
    except OSError:
        time.sleep(0.001)
print(len(held), flush=True)
sys.stdin.read()
'''


def memory(pid):
    """Resident kibioctets."""
    with open("/proc/%d/status" % pid) as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def busy(pid, seconds=1):
    """The share of one processor that the process uses."""
    def ticks():
        with open("/proc/%d/stat" % pid) as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


class Crowd:
    """Many connections of another user, each of which sends these octets and is held open."""

    def __init__(self, path, count, octets=b"", user=NOBODY, spaces=0):
        self.child = subprocess.Popen([sys.executable, "-c", CROWD, path, str(count), octets.hex(), str(user),
                                       str(spaces)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.count = int(self.child.stdout.readline() or 0)

    def close(self):
        self.child.stdin.close()
        self.child.wait()
        self.child.stdout.close()


def unharmed(case, stage, what):
    """Root is served at once, a session migrates, and the bounds hold."""
    pid = stage.daemon.pid
    began = time.monotonic()
    answer = request(stage.daemon.socket, "GET", "/healthz")
    case.ok(answer.status == 200 and time.monotonic() - began < 2, what + ": root is served at once",
            "%d after %.1f s" % (answer.status, time.monotonic() - began))
    stage.turn = not stage.turn
    answer, up, _ = stage.moved("s", "b" if stage.turn else "return")
    case.ok(answer.code == 0 and bool(up), what + ": and can migrate", lambda: str(answer))
    case.ok(descriptors(pid) < DESCRIPTORS, what + ": descriptors in bounds", descriptors(pid))
    case.ok(memory(pid) < KIBIOCTETS, what + ": memory in bounds", "%d KiB" % memory(pid))
    case.note("%s: %d descriptors, %d MiB, %.0f ms" % (
        what, descriptors(pid), memory(pid) >> 10, 1000 * (answer.ended - answer.started)))


def crowds(case, stage):
    path, pid = stage.daemon.socket, stage.daemon.pid
    body = HEAD.replace(b"migrations", b"drains") + b"Content-Length: 2000000\r\n\r\n"
    # A file that a hostile process may not open in large numbers is not asked of the daemon either.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (512, 512))
    for what, octets in (("3000 idle connections", b""), ("connections that begin a request", HEAD[:30]),
                         ("connections that hold a body back", body), ("streams that nobody reads",
                          b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")):
        crowd = Crowd(path, 3000 if case.full or not octets else 400, octets, spaces=1900000 * (octets is body))
        time.sleep(0.3)
        case.ok(crowd.count >= 64, what + ": (%d of another user's were made)" % crowd.count)
        unharmed(case, stage, what)
        case.ok(busy(pid) < 0.7, what + ": the daemon is idle all the same")
        # A third user has a place, too.
        third = Crowd(path, 1, HEALTH, user=NOBODY - 1)
        time.sleep(0.1)
        case.equal(third.count, 1, what + ": another user can connect")
        third.close()
        crowd.close()
    deadline = time.monotonic() + 5
    while descriptors(pid) > 60 and time.monotonic() < deadline:
        time.sleep(0.1)
    case.ok(descriptors(pid) <= 60, "once they have gone, so have their descriptors", descriptors(pid))


def told(case, stage):
    """One user has 64 places, and the next connection is told so; root has places then."""
    program = ("import os, socket, sys\nos.setgroups([])\nos.setgid(%d)\nos.setuid(%d)\nheld = []\nfor _ in range(70):\n    one = socket.socket(socket.AF_UNIX)\n"
               "    one.settimeout(5)\n    one.connect(sys.argv[1])\n    held.append(one)\n"
               "for one in (held[0], held[63], held[64]):\n    one.sendall(bytes.fromhex(sys.argv[2]))\n"
               "    print(one.recv(4096).split()[1].decode())\n") % (NOBODY, NOBODY)
    done = subprocess.run([sys.executable, "-c", program, stage.daemon.socket, HEALTH.hex()], capture_output=True, text=True,
                          timeout=30)
    case.equal(done.stdout.split(), ["200", "200", "503"], "one user has 64 connections, and the next one is told so")


def keys(case, stage):
    """Another user's ten thousand idempotency keys push out none of root's."""
    def ask():
        return request(stage.daemon.socket, "POST", "/v1/migrations/0/confirm", Idempotency_Key="mine")
    case.equal((ask().status, ask().headers.get("idempotency-replayed")), (404, "true"), "root's key is known")
    program = ("import os, socket, sys\nos.setgroups([])\nos.setgid(%d)\nos.setuid(%d)\none = socket.socket(socket.AF_UNIX)\n"
               "one.settimeout(20)\none.connect(sys.argv[1])\ncount = 0\nfor batch in range(102):\n"
               "    one.sendall(b''.join(b'POST /v1/migrations/0/confirm HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n'\n"
               "        b'Idempotency-Key: %%d\\r\\n\\r\\n' %% (100 * batch + n) for n in range(100)))\n    received = b''\n"
               "    while received.count(b'HTTP/1.1 404') < 100:\n        received += one.recv(65536)\n    count += 100\n"
               "print(count)\n") % (NOBODY, NOBODY)
    done = subprocess.run([sys.executable, "-c", program, stage.daemon.socket], capture_output=True, text=True, timeout=120)
    case.equal(done.stdout.strip(), "10200", "(another user has used so many)")
    case.equal(ask().headers.get("idempotency-replayed"), "true", "it is known behind another user's ten thousand, too")


def endless(case, stage):
    """Requests that never end: each is refused after a few megaoctets, in little time and memory."""
    path, pid = stage.daemon.socket, stage.daemon.pid
    room = memory(pid)
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for what, head, part, statuses in (
            ("a target", b"GET /", b"a" * 65536, {431}), ("a header's name", b"GET / HTTP/1.1\r\n", b"a" * 65536, {431}),
            ("a header's value", b"GET / HTTP/1.1\r\nA: ", b"a" * 65536, {431}),
            ("headers", b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 10000, {431}), ("a method", b"", b"A" * 65536, {400}),
            ("a version", b"GET / HTTP/1.", b"1" * 65536, {400}), ("empty lines", b"", b"\r\n" * 30000, {0, 413}),
            ("a chunk's extension", chunked + b"1;", b"a" * 65536, {413}), ("a chunk's length", chunked, b"0" * 65536, {413}),
            ("chunks of one octet", chunked, b"1\r\n \r\n" * 9000, {413}),
            ("trailers", chunked + b"2\r\n{}\r\n0\r\n", b"A: b\r\n" * 10000, {431})):
        client, sent, began = socket.socket(socket.AF_UNIX), 0, time.monotonic()
        client.settimeout(3)
        client.connect(path)
        try:
            client.sendall(head)
            while sent < 100e6 and time.monotonic() - began < 10:
                sent += client.send(part)
        except OSError:
            pass
        try:
            found = split(client.recv(65536))[0]
        except OSError:
            found = []
        spent = time.monotonic() - began
        client.close()
        case.ok((found or [(0, None)])[0][0] in statuses and spent < 3, "%s without an end is refused" % what,
                "%s after %.1f s, %.0f MB" % (found, spent, sent / 1e6))
    case.ok(memory(pid) - room < 8192, "in little memory", "%d KiB more" % (memory(pid) - room))
    unharmed(case, stage, "after endless requests")


def bodies(case, stage):
    """The largest documents there may be, many at once."""
    path, largest = stage.daemon.socket, 2 << 20
    texts = {"an array": b"[" + b"1," * (largest // 2 - 2) + b"1]", "a string": b'{"from":"' + b"x" * (largest - 20) + b'"}',
             "nesting": b"[" * largest, "members": b"{" + b",".join(b'"%d":0' % n for n in range(largest // 13)) + b"}",
             "sessions": json.dumps({"from": address("a"), "to": [{"host": address("b")}], "sessions": [
                 {"client": "198.18.1.2:1", "home": stage.home("s")}] * 25000, "x": 1}).encode()}
    for what, text in texts.items():
        octets = HEAD.replace(b"migrations", b"drains") + b"Content-Length: %d\r\n\r\n" % len(text) + text
        began = time.monotonic()
        found, _ = answers(path, octets, False, 20)
        case.ok(found and found[0][0] == 400, "2 MiB of %s are refused" % what, lambda: str(found))
        case.note("%d octets of %s: %.2f s" % (len(text), what, time.monotonic() - began))
    case.equal(answers(path, HEAD + b"Content-Length: 70000\r\n\r\n")[0][0][0], 413, "an order for one session has 64 KiB")
    # Twenty at once: some are told that there is no room, none is left without an answer.
    octets = HEAD.replace(b"migrations", b"drains") + b"Content-Length: %d\r\n\r\n" % len(texts["an array"])
    clients = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(path)
        client.sendall(octets)
        clients.append(client)
    statuses = {}
    for client in clients:
        try:
            client.sendall(texts["an array"][:-1])
        except OSError:
            pass
    for client in clients:
        try:
            client.sendall(texts["an array"][-1:])
        except OSError:
            pass
    for client in clients:
        try:
            status = (split(client.recv(65536))[0] or [(0, None)])[0][0]
        except OSError:
            status = 0
        statuses[status] = statuses.get(status, 0) + 1
        client.close()
    case.ok(set(statuses) <= {400, 503} and statuses.get(503, 0) >= 10 and statuses.get(400, 0) >= 5,
            "bodies have 16 MiB together, and who finds no room is told so", str(statuses))
    unharmed(case, stage, "after large documents")
    found, _ = answers(path, HEAD.replace(b"migrations", b"drains") + b"Content-Length: 2\r\n\r\n{}", False)
    case.equal(found[0][0], 400, "their room is free again")


def pipelines(case, stage):
    path = stage.daemon.socket
    for count in (2, 500):
        found, _ = answers(path, HEALTH * count)
        case.equal([status for status, _ in found], [200] * count, "%d requests at once are all answered" % count)
    for what, tail in (("noise", b"\0\1\2\r\n\r\n"), ("a torn request", b"POST / HT"), ("no Host", b"GET / HTTP/1.1\r\n\r\n")):
        found, _ = answers(path, HEALTH * 3 + tail)
        case.equal([status for status, _ in found][:3], [200] * 3, "so are those before %s" % what)
    found, received = answers(path, HEALTH.replace(b"GET", b"HEAD") + HEALTH, True)
    statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
    case.ok(statuses == [b"405", b"200"] and received.partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1"),
            "the answer to HEAD has no body, and the next one is where it should be", received)
    found, received = answers(path, HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", False, 2)
    case.ok(received.startswith(b"HTTP/1.1 100 "), "who asks before the body is sent is told to go on", received)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(1)
    client.connect(path)
    client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    sent = 0
    try:
        while sent < 100e6:
            sent += client.send(HEALTH * 1000)
    except OSError:
        pass
    case.ok(sent < 4e6, "requests behind a stream are not taken in without bounds", sent)
    client.close()


def half_open(case, stage):
    """A consumer that has closed its own direction still gets its events; one that has gone is forgotten."""
    path, pid = stage.daemon.socket, stage.daemon.pid
    before = descriptors(pid)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(3)
    client.connect(path)
    client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    stage.turn = not stage.turn
    stage.moved("s", "b" if stage.turn else "return")
    received = b""
    try:
        while b"migration.finished" not in received:
            part = client.recv(65536)
            if not part:
                break
            received += part
    except OSError:
        pass
    case.ok(b"migration.finished" in received, "a half-open consumer gets its events", received[-300:])
    client.close()
    # The migration holds a socket for conntrack's events as long as it needs one.
    deadline = time.monotonic() + 10
    while descriptors(pid) > before and time.monotonic() < deadline:
        time.sleep(0.1)
    case.ok(descriptors(pid) <= before, "and is forgotten when it has gone", "%d, %d before" % (descriptors(pid), before))


def body(case):
    with Stage([PORT], socket_mode=0o666) as stage:
        os.chmod(stage.lab.path(""), 0o755)
        stage.turn = False
        stage.open("s", "rr", PORT, sport=20001)
        unharmed(case, stage, "at first")
        told(case, stage)
        crowds(case, stage)
        keys(case, stage)
        endless(case, stage)
        bodies(case, stage)
        pipelines(case, stage)
        half_open(case, stage)
        if stage.turn:
            stage.moved("s", "return")
        stage.clean(case)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
