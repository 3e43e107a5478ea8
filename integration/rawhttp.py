# SPDX-License-Identifier: GPL-3.0-or-later
"""HTTP over the control socket, octet by octet where a case wants it so."""

import contextlib
import http.client
import json
import re
import socket
import threading


class Connection(http.client.HTTPConnection):
    """http.client over a UNIX socket."""

    def __init__(self, path, timeout=30):
        super().__init__("nfqmigd", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Response:
    """`status`, `headers` (lower case), `body` (octets) and `json` (None when it is none)."""

    def __init__(self, status, headers, body):
        self.status, self.body = status, body
        self.headers = {name.lower(): value for name, value in headers}
        try:
            self.json = json.loads(body)
        except ValueError:
            self.json = None

    @property
    def media_type(self):
        return self.headers.get("content-type", "").partition(";")[0].strip()


def request(path, method, target, body=None, timeout=30, **headers):
    """One request on a connection of its own; header names have underscores for hyphens."""
    connection = Connection(path, timeout)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        fields.setdefault("content-type", "application/json")
    try:
        connection.request(method, target, body, fields)
        answer = connection.getresponse()
        return Response(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


@contextlib.contextmanager
def told(path, octets, timeout, half_close):
    """A socket over which octets have been sent as they are."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(path)
        try:
            client.sendall(octets)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It has heard enough.
        yield client


def exchange(path, octets, timeout=2.0, half_close=True):
    """Send octets as they are; what came back until the end or the time-out (b"" when nothing did)."""
    received = b""
    with told(path, octets, timeout, half_close) as client:
        try:
            while True:
                part = client.recv(65536)
                if not part:
                    break
                received += part
        except OSError:
            pass
    return received


def answers(path, octets, half_close=True, patience=5.0, quiet=0.03):
    """Send octets as they are; the answers to them as [(status, document or None)], and what came, octet by octet. Waits for
    the end of the connection, `patience` seconds at most, and no more than `quiet` seconds after a whole answer."""
    received, found = b"", []
    with told(path, octets, patience, half_close) as client:
        while True:
            try:
                part = client.recv(65536)
            except OSError:
                break
            if not part:
                break
            received += part
            found, rest = split(received)
            if found and not rest and not half_close:
                client.settimeout(quiet)
    return found, received


def split(octets):
    """([(status, JSON document or None)], what is behind the last whole answer)."""
    found = []
    while True:
        head, end, rest = octets.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if not end or not match or not length or len(rest) < int(length.group(1)):
            return found, octets
        body, octets = rest[:int(length.group(1))], rest[int(length.group(1)):]
        found.append((int(match.group(1)), Response(0, [], body).json))


class EventStream:
    """A consumer of /v1/events in a thread: `events` grows, `last` is the id to resume with. `close` is abrupt."""

    def __init__(self, path, target="/v1/events?after=0", last=None, events=None, reads=True):
        self.events = [] if events is None else events
        self.last, self.status, self.error, self.reset = last, None, None, None
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        lines = ["GET %s HTTP/1.1" % target, "Host: nfqmigd", "Accept: text/event-stream"]
        if last is not None:
            lines.append("Last-Event-ID: %d" % last)
        self.socket.sendall("\r\n".join(lines + ["", ""]).encode())
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        if reads:
            self.thread.start()
            self.ready.wait(10)

    def _read(self):
        answer = http.client.HTTPResponse(self.socket)
        try:
            answer.begin()
            self.status = answer.status
            if answer.status != 200:
                self.error = json.loads(answer.read())
                return
            self.ready.set()
            block = {}
            while True:
                line = answer.readline()
                if not line:
                    break
                line = line.decode().rstrip("\n")
                if line:
                    name, _, value = line.partition(":")
                    block[name] = value.removeprefix(" ")
                    continue
                # Only a whole block counts: a torn one is asked for again.
                if block.get("event") == "reset":
                    self.reset = json.loads(block["data"])
                elif "data" in block:
                    self.events.append(json.loads(block["data"]))
                if "id" in block:
                    self.last = int(block["id"])
                block = {}
        except (OSError, ValueError, http.client.HTTPException, AttributeError):
            pass
        finally:
            self.ready.set()

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()
        if self.thread.is_alive():
            self.thread.join(5)
