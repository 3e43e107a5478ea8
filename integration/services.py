# SPDX-License-Identifier: GPL-3.0-or-later
"""Services and clients that nobody here wrote, for the demonstration: nginx and wrk, or Redis and redis-cli.

Each service says which host it runs on: A, B or D. Each client is Debian's, unchanged, and reconnects by itself.
"""

import collections
import re
import shutil
import signal
import subprocess
import threading
import time

from lab import HOSTS, LabError, address

NGINX = """daemon off;
master_process off;
pid %(path)s.pid;
error_log %(path)s.log;
events { worker_connections 256; }
http {
    access_log off;
    keepalive_requests 1000000000;
    server { listen %(v4)s:%(port)d; listen [%(v6)s]:%(port)d; location / { return 200 "%(name)s\\n"; } }
}
"""

WRK = """local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) A = 0; B = 0; D = 0; other = 0 end
function delay() return %d end
function response(status, headers, body)
    if status == 200 and body == "A\\n" then A = A + 1
    elseif status == 200 and body == "B\\n" then B = B + 1
    elseif status == 200 and body == "D\\n" then D = D + 1
    else other = other + 1 end
end
function done(summary, latency, requests)
    for _, thread in ipairs(threads) do
        print(string.format("answers A %%d B %%d D %%d other %%d", thread:get("A"), thread:get("B"), thread:get("D"),
                            thread:get("other")))
    end
    local e = summary.errors
    print(string.format("errors connect %%d read %%d write %%d status %%d timeout %%d", e.connect, e.read, e.write,
                        e.status, e.timeout))
end
"""


class Web:
    """nginx on every host, wrk on the client: keep-alive connections, a request every few milliseconds on each."""

    name = "nginx on A, B and D; wrk as the client"
    request = "GET / HTTP/1.1\r\nHost: home\r\n\r\n"

    @staticmethod
    def available():
        return bool(shutil.which("nginx") and shutil.which("wrk"))

    def __init__(self, lab, port):
        self.lab, self.port = lab, port
        for host in HOSTS:
            path = lab.path("nginx-" + host)
            with open(path, "w") as file:
                file.write(NGINX % {"path": path, "v4": address(host), "v6": address(host, 6), "port": port,
                                    "name": host.upper()})
            lab.spawn(host, ["nginx", "-c", path], stderr=subprocess.DEVNULL)
        await_listeners(lab, port)

    def load(self, target, connections, pause=5):
        path = self.lab.path("wrk.lua")
        with open(path, "w") as file:
            file.write(WRK % pause)
        self.wrk = self.lab.spawn("c", ["wrk", "-t", "1", "-c", str(connections), "-d", "1h", "--timeout", "5",
                                        "-s", path, "http://%s:%d/" % (target, self.port)],
                                  stdout=subprocess.PIPE, text=True)

    def finish(self):
        """(answers by server, resets seen, what else went wrong by kind): wrk stops on SIGINT and reports."""
        self.wrk.send_signal(signal.SIGINT)
        said = self.wrk.communicate(timeout=10)[0]
        answers, errors = ({kind: int(number) for line in said.splitlines() if line.startswith(what)
                            for kind, number in re.findall(r"(\w+) (\d+)", line[len(what):])}
                           for what in ("answers ", "errors "))
        resets = errors.pop("read", 0) + errors.pop("write", 0)
        errors["wrong answer"] = answers.pop("other", 0)
        return answers, resets, errors


class Redis:
    """redis-server on every host, redis-cli on the client, fed with one command after the other on its stdin."""

    name = "redis-server on A, B and D; redis-cli as the client"
    request = "GET whoami\r\n"

    @staticmethod
    def available():
        return bool(shutil.which("redis-server") and shutil.which("redis-cli"))

    def __init__(self, lab, port):
        self.lab, self.port = lab, port
        for host in HOSTS:
            lab.spawn(host, ["redis-server", "--port", str(port), "--bind", address(host), address(host, 6),
                             "--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", lab.directory],
                      stdout=subprocess.DEVNULL)
        await_listeners(lab, port)
        for host in HOSTS:
            lab.run(host, "redis-cli", "-h", address(host), "-p", str(port), "set", "whoami", host.upper())

    def load(self, target, connections, pause=5):
        self.stopping, self.answers, self.errors = False, collections.Counter(), collections.Counter()
        self.threads = []
        for _ in range(connections):
            child = self.lab.spawn("c", ["redis-cli", "-h", target, "-p", str(self.port)], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            thread = threading.Thread(target=self._drive, args=(child, pause / 1e3), daemon=True)
            thread.start()
            self.threads.append((thread, child))

    def _drive(self, child, pause):
        while not self.stopping:
            child.stdin.write("get whoami\n")
            child.stdin.flush()
            line = child.stdout.readline().strip().strip('"')
            if line in ("A", "B", "D"):
                self.answers[line] += 1
            else:
                self.errors[line or "end"] += 1
                if not line:
                    return
            time.sleep(pause)

    def finish(self):
        self.stopping = True
        for thread, child in self.threads:
            thread.join(5)
            self.lab.stop(child)
        # redis-cli tells of the reset and connects again for its next command.
        resets = sum(self.errors.pop(text) for text in list(self.errors) if "reset by peer" in text)
        return dict(self.answers), resets, dict(self.errors)


def await_listeners(lab, port, patience=10):
    deadline = time.monotonic() + patience
    for host in HOSTS:
        while not re.search(r":%d\s" % port, lab.run(host, "ss", "-tlnH").stdout):
            if time.monotonic() > deadline:
                raise LabError("nobody listens on %s:%d" % (address(host), port))
            time.sleep(0.05)


CHOICES = {"web": Web, "redis": Redis}


def choose(wanted=None):
    """The class wanted, or the first one whose programs are installed; None when there is none."""
    for name in [wanted] if wanted else CHOICES:
        if CHOICES[name].available():
            return CHOICES[name]
    return None
