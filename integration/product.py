# SPDX-License-Identifier: GPL-3.0-or-later
"""The product under test: nfqmigd in the gateway's namespace, nfqmigctl beside it.

The programs are taken from the directory NFQMIG_BIN, else from .build/release of this checkout. NFQMIG_TREATMENT is who writes
the packets of datapath queue, where a case does not say.
"""

import json
import os
import signal
import subprocess
import time

from lab import HERE, LabError

BINARIES = os.environ.get("NFQMIG_BIN") or os.path.join(os.path.dirname(HERE), ".build", "release")
DONE, FAILED, USAGE, UNKNOWN, UNPROVEN, REFUSED, UNREACHABLE, TIMED_OUT = range(8)


def program(name):
    return os.path.join(BINARIES, name)


def missing():
    """Why the product cannot be tested here; None when it can."""
    absent = [name for name in ("nfqmigd", "nfqmigctl") if not os.access(program(name), os.X_OK)]
    return "%s not found in %s: build it first" % (" and ".join(absent), BINARIES) if absent else None


class Answer:
    """What a run of nfqmigctl said: `code`, `out`, `err`, the JSON document if there is one; `started` and `ended` are
    CLOCK_MONOTONIC."""

    def __init__(self, code, out, err, started, ended):
        self.code, self.out, self.err, self.started, self.ended = code, out, err, started, ended
        try:
            self.json = json.loads(out)
        except ValueError:
            self.json = None

    def __getitem__(self, name):
        return (self.json or {}).get(name)

    @property
    def requested(self):
        """When the daemon had the request, CLOCK_MONOTONIC (its report speaks CLOCK_REALTIME)."""
        return monotonic(self["requestedAt"]) if self["requestedAt"] else self.started

    def __str__(self):
        if not self.json:
            return "exit %d; stdout: %s; stderr: %s" % (self.code, self.out.strip() or "-", self.err.strip() or "-")
        steps = "; ".join("%.2f %s %s" % (step["at"], step["step"], step.get("detail") or "")
                          for step in self["timeline"] or ())
        return "exit %d, outcome %s, reason %s, connections %s; %s%s" % (
            self.code, self["outcome"], self["reason"], json.dumps(self["connections"]), steps, self.err.strip())


def monotonic(realtime):
    return realtime - time.time() + time.monotonic()


# Whatever a case does: what the policy refuses has cases of its own.
EVERYTHING = [{"name": "lab", "homes": ["0.0.0.0/0:1-65535", "[::/0]:1-65535"], "hosts": ["0.0.0.0/0", "::/0"]}]


def toml(settings):
    """Settings as TOML; a list of dictionaries becomes a list of tables, behind everything else."""
    tables = {name: value for name, value in settings.items() if isinstance(value, list) and value
              and isinstance(value[0], dict)}
    lines = ["%s = %s" % (name, json.dumps(value)) for name, value in settings.items()
             if name not in tables and value != []]
    for name, values in tables.items():
        for value in values:
            lines += ["[[%s]]" % name] + ["%s = %s" % (key, json.dumps(each)) for key, each in value.items()]
    return "\n".join(lines) + "\n"


class Daemon:
    """nfqmigd in a lab. The configuration file holds `settings`; guards are short unless told otherwise, and the policy
    allows everything."""

    def __init__(self, lab, **settings):
        self.lab = lab
        self.socket = lab.path("control.sock")
        self.config = lab.path("nfqmigd.toml")
        self.log = lab.path("nfqmigd.log")
        self.settings = {"socket": self.socket, "state-directory": lab.path("state"), "queues": 2,
                         "guard-proven": 2, "guard-unproven": 86400, "service": EVERYTHING}
        if os.environ.get("NFQMIG_TREATMENT"):
            self.settings["treatment"] = os.environ["NFQMIG_TREATMENT"]
        self.settings.update({name.replace("_", "-"): value for name, value in settings.items()})
        self.child = None

    @property
    def pid(self):
        return self.child.pid

    def configure(self, **settings):
        self.settings.update({name.replace("_", "-"): value for name, value in settings.items()})
        with open(self.config, "w") as file:
            file.write(toml(self.settings))

    def start(self, patience=15):
        self.configure()
        os.makedirs(self.settings["state-directory"], exist_ok=True)
        with open(self.log, "ab") as log:
            self.child = self.lab.spawn("g", [program("nfqmigd"), "run", "--config", self.config],
                                        stdout=log, stderr=log)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise LabError("nfqmigd ended with %d:\n%s" % (self.child.returncode, self.tail()))
            if os.path.exists(self.socket) and self.ctl("sessions").code == 0:
                return self
            time.sleep(0.05)
        raise LabError("nfqmigd was not ready within %d s:\n%s" % (patience, self.tail()))

    def reload(self, patience=10, **settings):
        """Change the configuration file and send SIGHUP; what the daemon has written to its log since then."""
        self.configure(**settings)
        size = os.path.getsize(self.log)
        self.child.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with open(self.log, errors="replace") as file:
                file.seek(size)
                said = file.read()
            if "configuration reloaded" in said or "stay as they were" in said:
                return said
            time.sleep(0.02)
        raise LabError("nfqmigd did not reload:\n%s" % self.tail())

    def audited(self):
        """The lines of the audit log."""
        with open(os.path.join(self.settings["state-directory"], "audit.log")) as file:
            return [json.loads(line) for line in file]

    def stop(self):
        """SIGTERM; the return code."""
        return self.lab.stop(self.child, patience=10)

    def kill(self):
        """SIGKILL, as a crash."""
        self.child.send_signal(signal.SIGKILL)
        self.lab.stop(self.child)

    def remove(self):
        return self.lab.run("g", program("nfqmigd"), "remove", "--config", self.config, check=False)

    def tail(self, lines=40):
        try:
            with open(self.log, errors="replace") as file:
                return "".join(file.readlines()[-lines:])
        except FileNotFoundError:
            return ""

    def ctl(self, *arguments, timeout=120):
        started = time.monotonic()
        done = subprocess.run([program("nfqmigctl"), "--socket", self.socket] + [str(word) for word in arguments],
                              capture_output=True, text=True, timeout=timeout)
        return Answer(done.returncode, done.stdout, done.stderr, started, time.monotonic())

    def migrate(self, client, home, to, *more, wait=True, timeout=30):
        """`nfqmigctl migrate … --json`; to `None`: `nfqmigctl return`."""
        words = ["migrate", "--to", to] if to else ["return"]
        words += ["--client", client, "--from", home, "--json"] + list(more)
        if wait:
            words += ["--wait", "--timeout", str(timeout)]
        return self.ctl(*words, timeout=timeout + 30)

    def sessions(self):
        return self.ctl("sessions", "--json")["sessions"]

    def counters(self):
        return self.ctl("counters", "--json")["queues"]
