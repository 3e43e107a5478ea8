# SPDX-License-Identifier: GPL-3.0-or-later
"""Hooks for the cases: programs written into a lab's own directory, and a webhook's server on the gateway."""

import os
import sys
import time

from lab import LabError

SERVER = '''
import http.server, json, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[2], "a") as file:
            file.write(json.dumps([self.path, json.loads(body)]) + "\\n")
        if self.path == "/hang":
            time.sleep(600)
        if self.path == "/trickle":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.1)
            except OSError:
                return
        answer = {"/fail": (503, b"there is no room on B"), "/garbage": (200, b"<html>hello</html>")}
        status, text = answer.get(self.path, (200, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
'''


def program(lab, name, text):
    """Write a shell script; its path."""
    path = lab.path(name)
    with open(path, "w") as file:
        file.write("#!/bin/sh\n" + text)
    os.chmod(path, 0o755)
    return path


def webhook(lab, port):
    """Start the server on the gateway; the file that it writes what it is told to, one line of JSON each."""
    script, told = lab.path("webhook.py"), lab.path("webhook.log")
    with open(script, "w") as file:
        file.write(SERVER)
    lab.spawn("g", [sys.executable, script, str(port), told])
    deadline = time.monotonic() + 10
    while ":%d " % port not in lab.run("g", "ss", "-tlnH").stdout:
        if time.monotonic() > deadline:
            raise LabError("the webhook's server did not start")
        time.sleep(0.05)
    return told


def lines(path):
    """A file's lines; none when there is no such file."""
    try:
        with open(path) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def await_lines(path, count, patience=5):
    """A file's lines, once there are so many or the patience is over."""
    deadline = time.monotonic() + patience
    while len(lines(path)) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return lines(path)
