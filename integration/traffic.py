# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the measuring client and servers in a lab and talks to them."""

import json
import os
import subprocess
import sys
import threading
import time

from lab import HERE, HOSTS, LabError

PYTHON = sys.executable


class Lines:
    """A process whose stdout is JSON lines; a thread collects them."""

    def __init__(self, lab, host, argv):
        self.lab, self.host = lab, host
        self.events, self.changed, self.ended = [], threading.Condition(), False
        self.process = lab.spawn(host, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self):
        for line in self.process.stdout:
            event = json.loads(line)
            with self.changed:
                self.events.append(event)
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def find(self, matches, timeout=0.0, start=0):
        """The first event (from number `start` on) that matches, waiting up to `timeout` seconds; None if none came."""
        deadline = time.monotonic() + timeout
        index = start
        with self.changed:
            while True:
                for index in range(index, len(self.events)):
                    if matches(self.events[index]):
                        return self.events[index]
                index = len(self.events)
                left = deadline - time.monotonic()
                if left <= 0 or self.ended:
                    return None
                self.changed.wait(left)

    def all(self, matches, start=0):
        with self.changed:
            return [event for event in self.events[start:] if matches(event)]

    def mark(self):
        """A number for `start`: events from now on."""
        with self.changed:
            return len(self.events)


class Servers:
    """A server on each host, all on the same ports, called A, B and D."""

    def __init__(self, lab, ports, hosts=HOSTS):
        self.each = {}
        for host in hosts:
            self.each[host] = Lines(lab, host, [PYTHON, os.path.join(HERE, "server.py"), host.upper(),
                                               ",".join(str(port) for port in ports)])
        for host, server in self.each.items():
            if not server.find(lambda event: event["event"] == "ready", 10):
                raise LabError("the server on %s did not start" % host)

    def corrupt(self):
        return [event for server in self.each.values() for event in server.all(lambda e: e["event"] == "corrupt")]


class Client(Lines):
    """The measuring client: one process, many sessions."""

    def __init__(self, lab, host="c"):
        super().__init__(lab, host, [PYTHON, os.path.join(HERE, "client.py")])
        self.opened = {}

    def order(self, **order):
        self.process.stdin.write((json.dumps(order) + "\n").encode())
        self.process.stdin.flush()

    def open(self, name, mode, to, port, timeout=10, **options):
        """Open a session and wait for the server's first byte; the event."""
        mark = self.mark()
        self.opened[name] = dict(options, mode=mode, to=to, port=port)
        self.order(do="open", id=name, mode=mode, to=to, port=port, **options)
        up = self.await_up(name, mark=mark, timeout=timeout)
        if not up:
            raise LabError("session %s did not come up: %s" % (name, self.all(lambda e: e.get("id") == name, mark)))
        return up

    def await_up(self, name, server=None, mark=0, timeout=10):
        return self.find(lambda e: e["event"] == "up" and e["id"] == name and server in (None, e["server"]),
                         timeout, mark)

    def seen(self, name, *kinds, mark=0):
        return self.all(lambda e: e.get("id") == name and e["event"] in kinds, mark)

    def cycle(self, name, timeout=10):
        """Drop and reconnect; seconds until the first byte of the new connection, the floor of every migration."""
        mark = self.mark()
        self.order(do="cycle", id=name)
        up = self.await_up(name, mark=mark, timeout=timeout)
        return up and up["took"]

    def stats(self, timeout=5):
        mark = self.mark()
        self.order(do="stats")
        event = self.find(lambda e: e["event"] == "stats", timeout, mark)
        if not event:
            raise LabError("the client does not answer")
        return event["sessions"]

    def works(self, name, timeout=5.0):
        """Whether data still pass on a session: a pong, another answer, more octets in both directions."""
        mark, before = self.mark(), self.stats().get(name)
        mode = self.opened[name]["mode"]
        if before["state"] != "up":
            return False
        if mode == "idle":
            self.order(do="ping", id=name)
            return bool(self.find(lambda e: e["event"] == "pong" and e["id"] == name, timeout, mark))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(0.02)
            now = self.stats()[name]
            if now["connections"] != before["connections"]:
                before = now
            elif mode in ("rr", "ask") and now["answers"] > before["answers"] + 1:
                return True
            elif mode == "tick" and now["received"] > before["received"]:
                return True
            elif mode == "bulk" and now["received"] > before["received"] + 65536 and now["sent"] > before["sent"]:
                return True
        return False

    def close(self, name):
        self.order(do="close", id=name)
        self.opened.pop(name, None)
