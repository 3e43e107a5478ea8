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
from rawhttp import Response, answers, exchange, request
from stage import Stage

PORT, CLOSED = 7000, 7099
SEED = 20260901


def state(stage):
    entries = sorted((entry.original, entry.reply, entry.state) for entry in conntrack(stage.lab)
                     if entry.original[0] == address("c"))
    lists = [request(stage.daemon.socket, "GET", "/v1/" + name).json for name in ("migrations", "drains")]
    return ruleset(stage.lab), entries, stage.daemon.sessions(), [[one["id"] for one in each[name]] for each, name in zip(
        lists, ("migrations", "drains"))]


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
    """A TCP port that leads to the control socket, for a program that knows no UNIX sockets and no streams without an end: a
    stream of events that says nothing for a moment is ended as its sender would."""

    def __init__(self, path):
        self.path, self.listener, self.streams = path, socket.create_server(("127.0.0.1", 0)), 0
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
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, one, other, is_answer):
        try:
            while octets := one.recv(65536):
                other.sendall(octets)
                if is_answer and b"content-type: text/event-stream" in octets:
                    self.streams += 1
                    one.settimeout(0.2)
            other.shutdown(socket.SHUT_WR)
        except socket.timeout:
            try:
                other.sendall(b"0\r\n\r\n")
            except OSError:
                pass
            for each in (one, other):
                each.close()
        except OSError:
            for each in (one, other):
                each.close()

    def close(self):
        self.listener.close()


def schemathesis(case, stage, description):
    """A generator of requests that knows the description, and the names of this lab, finds no answer outside it: also of
    orders that are carried out."""
    environment = dict(os.environ, PYTHONPATH=os.path.join(ROOT, ".build", "python"))
    if subprocess.run([sys.executable, "-c", "import schemathesis"], env=environment, capture_output=True).returncode:
        return case.skip("schemathesis finds nothing", "schemathesis is not installed; run make deps")
    bridge, count = Bridge(stage.daemon.socket), 300 if case.full else 30
    code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    client, homes = address("c"), [stage.home(name) for name in stage.sessions]
    hosts = [address("b"), endpoint(address("b"), PORT), address("d"), "home"]
    clients = [client] + [endpoint(client, session["sport"]) for session in stage.sessions.values()]
    lab = description.with_values(
        {"client": clients, "home": homes, "host": hosts, "id": list(range(1, 60)), "wait": [0, 0.1]},
        {"client": clients[1:], "from": homes, "to": hosts, "host": hosts, "session": [None], "scope": [None, "connection"],
         "then": [None], "lifetime": [None, 1, 60], "confirmWithin": [None, 1, 60], "weight": [None, 3], "sessions": [None],
         "atMost": [None, 5], "order": [None], "rate": [None, 50], "inFlight": [None, 1], "canary": [None, 0.5],
         "settle": [None, 0]}, stage.lab.path("openapi.json"))
    before = request(stage.daemon.socket, "GET", "/v1/migrations?state=failed").json["migrations"]
    first = max([one["id"] for one in request(stage.daemon.socket, "GET", "/v1/migrations").json["migrations"]] or [0])
    done = subprocess.run(
        [sys.executable, "-c", code, "run", lab, "--url", "http://127.0.0.1:%d" % bridge.port,
         "--max-examples", str(count), "--seed", str(SEED), "--checks", "all",
         "--exclude-checks", "positive_data_acceptance,ignored_auth", "--phases",
         "examples,coverage,fuzzing" + (",stateful" if case.full else ""),
         "--generation-database", "none", "--request-timeout", "20", "--no-color"],
        env=environment, capture_output=True, text=True, cwd=stage.lab.path(""), timeout=1800)
    bridge.close()
    case.ok(done.returncode == 0, "schemathesis finds no answer outside the description",
            lambda: (done.stdout + done.stderr)[-8000:])
    selected = re.search(r"Selected: (\d+)/(\d+)", done.stdout)
    case.equal(selected and selected.groups(), (str(len(description.operations())),) * 2, "it has asked for every operation")
    case.ok(bridge.streams > 5, "streams of events among them", bridge.streams)
    last = request(stage.daemon.socket, "GET", "/v1/migrations").json["migrations"]
    moved = [one for one in last if one["id"] > first and one.get("outcome") in ("proven", "unproven", "superseded")]
    case.ok(len(moved) > 2, "and some of its migrations were carried out", len(moved))
    drains = request(stage.daemon.socket, "GET", "/v1/drains").json["drains"]
    case.ok(drains, "as were drains", len(drains))
    case.note("%d streams, %d migrations (%d carried out), %d drains; %d failed before" % (
        bridge.streams, len(last), len(moved), len(drains), len(before)))
    for line in done.stdout.splitlines():
        if re.search(r"generated|passed|failed|Selected|Tested", line):
            case.note(line.strip())


def malformed(case, stage, description):
    path, pid = stage.daemon.socket, stage.daemon.pid
    count = 10000 if case.full else 1500
    maker = Malformed(random.Random(SEED), {"client": endpoint(address("c"), 20001), "from": stage.home("s"),
                                            "to": address("b")})
    # Slow bodies: an octet now and then, until they are told that this is too slow.
    dribblers = []
    for _ in range(20):
        dribbler = socket.socket(socket.AF_UNIX)
        dribbler.connect(path)
        dribbler.sendall(b"POST /v1/migrations HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        dribblers.append(dribbler)
    before, room, statuses, bad, silent = state(stage), 0, {}, [], []
    began, files = time.monotonic(), descriptors(pid)
    for index in range(count):
        kind, octets, half_close, is_whole = maker.make()
        found, received = answers(path, octets, half_close, 10 if is_whole else 0.02)
        for status, document in found:
            statuses[status] = statuses.get(status, 0) + 1
            if status < 400 or status >= 500 or description.problem(document):
                bad.append((kind, octets[:300], received[:300]))
        if not found:
            statuses["silence"] = statuses.get("silence", 0) + 1
            if is_whole:
                silent.append((kind, half_close, octets[:300], received[:300]))
        if index == count // 5:
            room = memory(pid)
        if index % 200 == 0:
            for dribbler in dribblers:
                try:
                    dribbler.sendall(b"x")
                except OSError:
                    pass
    spent = time.monotonic() - began
    case.equal(bad[:5], [], "%d malformed requests: each answer is a refusal below 500, as a problem document" % count)
    case.equal(silent[:5], [], "each that is a whole request is answered")
    case.note("%d requests in %.1f s, seed %d; answers: %s" % (count, spent, SEED, ", ".join(
        "%s × %d" % pair for pair in sorted(statuses.items(), key=str))))
    for dribbler in dribblers:
        dribbler.close()
    time.sleep(0.5)
    case.ok(stage.daemon.child.poll() is None, "the daemon runs", stage.daemon.tail)
    case.equal(state(stage), before, "table, conntrack, sessions, migrations and drains are as before")
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
    documents = description.documents()
    case.ok(len(documents) > 15 and sum(map(len, documents.values())) > 100, "(the source's documents are found)",
            str(documents))
    case.equal(description.described(), documents, "documents of source and description have the same members, and the same "
               "of them may be absent")
    schemas = description.document["components"]["schemas"]
    case.equal(sorted(schemas["Event"]["properties"]["kind"]["enum"]), sorted(description.names("Kind")),
               "they know the same kinds of events")
    case.equal(sorted(schemas["Problem"]["properties"]["type"]["enum"]),
               sorted("urn:nfqmigd:" + name for name in description.names("ProblemKind")), "and the same kinds of refusals")
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
