#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is asked of the control interface, the answer is one that docs/openapi.yaml describes; and thousands of malformed
requests end neither the daemon nor a connection, and change nothing."""

import os
import random
import re
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import conntrack, ruleset
from lab import address, endpoint
from malformed import Malformed
from openapi import ROOT, Description
from rawhttp import Response, exchange, request
from stage import Stage

PORT, CLOSED = 7000, 7099
SEED = 20260901


def state(stage):
    entries = sorted((entry.original, entry.reply, entry.state) for entry in conntrack(stage.lab)
                     if entry.original[0] == address("c"))
    return ruleset(stage.lab), entries, stage.daemon.sessions()


def memory(pid):
    """Resident kibioctets."""
    with open("/proc/%d/status" % pid) as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))


def descriptors(pid):
    return len(os.listdir("/proc/%d/fd" % pid))


def described(case, stage, description):
    """Every operation and every refusal once, each held against the description."""
    path, home = stage.daemon.socket, stage.home("s")
    client, order = endpoint(address("c"), 20001), {"client": endpoint(address("c"), 20001), "from": stage.home("s")}

    def check(what, status, method, target, operation=None, kind=None, **options):
        response = request(path, method, target, **options)
        case.equal(response.status, status, "%s: %d" % (what, status))
        case.equal(description.violations(method, operation or target.partition("?")[0], response), [],
                   what + ": the answer is described")
        if kind:
            case.equal((response.json or {}).get("type"), "urn:nfqmigd:" + kind, "%s: it is %s" % (what, kind))
        return response

    check("health", 200, "GET", "/healthz")
    check("connections", 200, "GET", "/v1/connections?client=" + address("c"))
    check("counters", 200, "GET", "/v1/counters")
    check("no sessions", 200, "GET", "/v1/sessions")
    key = {"Idempotency_Key": "case r"}
    moved = check("a migration", 201, "POST", "/v1/migrations", body=dict(order, to=address("b")), **key)
    again = check("the same once more", 201, "POST", "/v1/migrations", body=dict(order, to=address("b")), **key)
    case.ok(again.body == moved.body and again.headers.get("idempotency-replayed") == "true",
            "the same request with the same key has the same answer, and says so", str(again.headers))
    number = moved.json["id"]
    case.equal(len(request(path, "GET", "/v1/migrations").json["migrations"]), 1, "and was carried out once")
    check("the key for another request", 422, "POST", "/v1/migrations", kind="idempotency-key-reused",
          body=dict(order, to="home"), **key)
    check("a key of 300 characters", 400, "POST", "/v1/migrations", kind="malformed-request",
          body=dict(order, to="home"), Idempotency_Key="x" * 300)
    done = check("its report", 200, "GET", "/v1/migrations/%d?wait=10" % number, "/v1/migrations/{id}")
    case.equal(done.json["outcome"], "proven", "it is proven")
    listed = check("sessions", 200, "GET", "/v1/sessions?host=" + address("b")).json["sessions"]
    case.equal([one["host"] for one in listed], [endpoint(address("b"), PORT)], "the filter finds it")
    case.equal(check("sessions elsewhere", 200, "GET", "/v1/sessions?host=" + address("d")).json["sessions"], [],
               "and leaves it out elsewhere")
    check("migrations", 200, "GET", "/v1/migrations?state=proven")
    told = check("explain", 200, "GET", "/v1/explain?client=%s&home=%s" % (client, home))
    case.ok(told.json["elements"] and told.json["conntrack"] and told.json["session"]["host"].startswith(address("b")),
            "explain names binding, element and conntrack entry", str(told.json))
    check("explain of strangers", 200, "GET", "/v1/explain?client=192.0.2.1&home=192.0.2.2:80")
    check("explain of nothing", 400, "GET", "/v1/explain", kind="malformed-request")
    check("already there", 409, "POST", "/v1/migrations", kind="already-there", body=dict(order, to=address("b")))
    check("not listening", 201, "POST", "/v1/migrations", body=dict(order, to=endpoint(address("d"), CLOSED)))
    check("home again", 201, "POST", "/v1/migrations", body=dict(order, to=None))
    check("unknown connection", 404, "POST", "/v1/migrations", kind="unknown-connection",
          body={"client": "192.0.2.1:5", "from": "192.0.2.2:80", "to": "192.0.2.3"})
    unknown = check("an unknown member", 400, "POST", "/v1/migrations", kind="malformed-request",
                    body=dict(order, to=address("b"), colour="green"))
    case.ok("colour" in unknown.json["detail"], "is named", unknown.json["detail"])
    unknown = check("an unknown parameter", 400, "GET", "/v1/sessions?colour=green", kind="malformed-request")
    case.ok("colour" in unknown.json["detail"], "is named", unknown.json["detail"])
    check("a limit of 0", 400, "GET", "/v1/sessions?limit=0", kind="malformed-request")
    check("a media type", 415, "POST", "/v1/migrations", kind="unsupported-media-type", body=b"a=b",
          content_type="application/x-www-form-urlencoded")
    check("a body too large", 413, "POST", "/v1/migrations", kind="content-too-large", body=b" " * 2200000,
          content_type="application/json")
    check("an unknown migration", 404, "GET", "/v1/migrations/987654", "/v1/migrations/{id}", kind="unknown-migration")
    check("an event that is to come", 410, "GET", "/v1/events?after=987654", kind="events-gone")
    for method, template in sorted(description.operations()):
        target = template.replace("{id}", "1")
        allowed = {one for one, path_ in description.operations() if path_ == template}
        response = check("OPTIONS " + template, 405, "OPTIONS", target, template, kind="method-not-allowed")
        case.equal(set(response.headers.get("allow", "").split(", ")), allowed, template + ": Allow says what is described")
    large = Response(431, [("content-type", "application/problem+json")],
                     exchange(path, b"GET / HTTP/1.1\r\nA: " + b"x" * 20000 + b"\r\n\r\n").partition(b"\r\n\r\n")[2])
    case.equal(description.problem(large.json), [], "headers too large: a problem document")


def pages(case, stage):
    """A list in pages of one holds what the whole list does."""
    path, whole = stage.daemon.socket, request(stage.daemon.socket, "GET", "/v1/migrations").json["migrations"]
    found, after = [], ""
    while len(found) < len(whole) + 5:
        page = request(path, "GET", "/v1/migrations?limit=1" + after).json
        found += page["migrations"]
        if "next" not in page:
            break
        after = "&after=" + page["next"]
    case.equal([one["id"] for one in found], [one["id"] for one in whole], "pages of one hold the whole list, once")


class Bridge:
    """A TCP port that leads to the control socket, for a program that knows no UNIX sockets."""

    def __init__(self, path):
        self.path, self.listener = path, socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self.path)
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one, other):
        try:
            while octets := one.recv(65536):
                other.sendall(octets)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            for each in (one, other):
                each.close()

    def close(self):
        self.listener.close()


def schemathesis(case, stage, description):
    """A generator of requests that knows only the description finds no answer outside it."""
    environment = dict(os.environ, PYTHONPATH=os.path.join(ROOT, ".build", "python"))
    if subprocess.run([sys.executable, "-c", "import schemathesis"], env=environment, capture_output=True).returncode:
        return case.skip("schemathesis finds nothing", "schemathesis is not installed; run make deps")
    bridge, count = Bridge(stage.daemon.socket), 400 if case.full else 40
    code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    # A stream has no end; it has a case of its own.
    done = subprocess.run(
        [sys.executable, "-c", code, "run", description.path, "--url", "http://127.0.0.1:%d" % bridge.port,
         "--exclude-path", "/v1/events", "--max-examples", str(count), "--seed", str(SEED), "--checks", "all",
         "--exclude-checks", "positive_data_acceptance,ignored_auth", "--phases", "examples,coverage,fuzzing",
         "--generation-database", "none", "--request-timeout", "20", "--no-color"],
        env=environment, capture_output=True, text=True, cwd=stage.lab.path(""), timeout=1800)
    bridge.close()
    case.ok(done.returncode == 0, "schemathesis finds no answer outside the description",
            lambda: (done.stdout + done.stderr)[-6000:])
    for line in done.stdout.splitlines():
        if re.search(r"generated|passed|failed|Selected|Tested", line):
            case.note(line.strip())


def malformed(case, stage, description):
    path, pid = stage.daemon.socket, stage.daemon.pid
    count = 10000 if case.full else 1500
    maker = Malformed(random.Random(SEED), {"client": endpoint(address("c"), 20001), "from": stage.home("s"),
                                            "to": address("b")})
    dribblers = []
    for _ in range(20):
        dribbler = socket.socket(socket.AF_UNIX)
        dribbler.connect(path)
        dribbler.sendall(b"POST /v1/migrations HTTP/1.1\r\nContent-Length: 50\r\n")
        dribblers.append(dribbler)
    before, room, statuses, bad = state(stage), 0, {}, []
    began, files = time.monotonic(), descriptors(pid)
    for index in range(count):
        kind, octets, half_close = maker.make()
        received = exchange(path, octets, 1.0 if half_close else 0.02, half_close)
        if index == count // 5:
            room = memory(pid)
        if index % 200 == 0:
            for dribbler in dribblers:
                try:
                    dribbler.sendall(b"x")
                except OSError:
                    pass
        if not received:
            statuses["silence"] = statuses.get("silence", 0) + 1
            continue
        head, _, body = received.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
        status = int(match.group(1)) if match else 0
        statuses[status] = statuses.get(status, 0) + 1
        length = re.search(rb"(?i)content-length: (\d+)", head)
        document = Response(status, [], body[:int(length.group(1))] if length else body).json
        if status == 0 or status >= 500 or (status < 400 and kind not in ("target", "events", "pipeline")) or (
                status >= 400 and description.problem(document)):
            bad.append((kind, octets[:200], received[:300]))
    spent = time.monotonic() - began
    case.equal(bad[:5], [], "%d malformed requests: each is refused with a problem document, or in silence" % count)
    case.note("%d requests in %.1f s, seed %d; answers: %s" % (count, spent, SEED, ", ".join(
        "%s × %d" % pair for pair in sorted(statuses.items(), key=str))))
    for dribbler in dribblers:
        dribbler.close()
    time.sleep(0.5)
    case.ok(stage.daemon.child.poll() is None, "the daemon runs", stage.daemon.tail)
    case.equal(state(stage), before, "table, conntrack and sessions are as before")
    grown = memory(pid) - room
    case.ok(grown < 16384, "memory has not grown by 16 MiB since the first fifth", "%d KiB" % grown)
    case.note("memory %d KiB, %+d KiB since the first fifth" % (memory(pid), grown))
    case.ok(descriptors(pid) <= files, "no descriptor is left open", "%d, %d before" % (descriptors(pid), files))
    case.ok(stage.client.works("s"), "the connection works")


def crowd(case, stage):
    """Ten times more connections than are served, held open: those inside are served, one too many is told."""
    path, held = stage.daemon.socket, []
    for _ in range(140):
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.settimeout(5)
        held.append(client)
    held[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    told = held[-1].recv(4096)
    case.ok(told.startswith(b"HTTP/1.1 503") and b"too-many-connections" in told, "one connection too many is told so", told)
    held[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    case.ok(held[0].recv(4096).startswith(b"HTTP/1.1 200"), "one of the first is served")
    for client in held:
        client.close()
    time.sleep(0.3)
    case.equal(request(path, "GET", "/healthz").status, 200, "and once they have gone, everybody is")


def body(case):
    description = Description()
    if description.skip:
        raise tap.Skip(description.skip)
    try:
        from openapi_spec_validator import validate
        validate(description.document)
        case.ok(True, "docs/openapi.yaml is OpenAPI 3.1")
    except ImportError:
        case.skip("docs/openapi.yaml is OpenAPI 3.1", "openapi-spec-validator is not installed; run make deps")
    case.equal(description.operations(), description.routes(), "every route is described, and every description a route")
    with Stage([PORT]) as stage:
        stage.open("s", "rr", PORT, sport=20001)
        described(case, stage, description)
        pages(case, stage)
        crowd(case, stage)
        stage.clean(case)
        stage.client.works("s")
        malformed(case, stage, description)
        schemathesis(case, stage, description)
        case.equal(request(stage.daemon.socket, "GET", "/healthz").status, 200, "it is healthy afterwards")
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
