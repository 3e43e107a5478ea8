#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A webhook's receiver whose conduct can be changed while it runs.

    receiver.py PORT LOG CONDUCT    CONDUCT is a file that says how to treat requests: one word of ANSWERS, hang or trickle

Each request becomes a line of JSON in LOG before it is answered: [conduct, path, document, whether it will be accepted].
"""

import http.server
import json
import os
import sys
import time

from lab import HERE, LabError

ANSWERS = {"accept": 200, "refuse": 500, "redirect": 307}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[3]) as file:
            conduct = file.read().strip()
        with open(sys.argv[2], "a") as file:
            file.write(json.dumps([conduct, self.path, json.loads(body), conduct == "accept"]) + "\n")
        if conduct == "hang":
            time.sleep(600)
        if conduct == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True
                return
        self.send_response(ANSWERS[conduct])
        if conduct == "redirect":
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


class Receiver:
    """The program on the gateway, as a case uses it; `address` is where to post."""

    def __init__(self, lab, name, port):
        self.lab, self.port = lab, port
        self.address = "http://127.0.0.1:%d/%s" % (port, name)
        self.log, self.file = lab.path(name + ".log"), lab.path(name + ".conduct")
        self.child = None
        self.conduct("accept")
        self.start()

    def conduct(self, word):
        with open(self.file + ".new", "w") as file:
            file.write(word)
        os.rename(self.file + ".new", self.file)

    def start(self, patience=10):
        self.child = self.lab.spawn("g", [sys.executable, os.path.join(HERE, "receiver.py"), str(self.port), self.log,
                                          self.file])
        deadline = time.monotonic() + patience
        while ":%d " % self.port not in self.lab.run("g", "ss", "-tlnH").stdout:
            if time.monotonic() > deadline:
                raise LabError("the receiver did not start")
            time.sleep(0.05)

    def stop(self):
        self.child.kill()
        self.lab.stop(self.child)

    def requests(self):
        """All requests so far: [conduct, path, document, accepted]."""
        try:
            with open(self.log) as file:
                return [json.loads(line) for line in file.read().split("\n")[:-1]]
        except FileNotFoundError:
            return []

    def accepted(self):
        """The documents of those that were answered with success."""
        return [document for _, _, document, accepted in self.requests() if accepted]

    def events(self):
        """The events of these, in the order in which they came."""
        return [event for document in self.accepted() for event in document["events"]]


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
