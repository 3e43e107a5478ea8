# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that nobody should send, from a seed: as many as one wants, the same ones each time."""

import json


class Malformed:
    """`make()` gives (what it is, octets, whether to half-close, seconds to wait for an answer)."""

    def __init__(self, random, order):
        """`order`: a migration order that would be carried out, to be spoilt."""
        self.random, self.order = random, order
        self.kinds = [self.noise, self.request_line, self.headers, self.target, self.broken_json, self.wrong_member,
                      self.wrong_type, self.not_utf8, self.nesting, self.length, self.chunks, self.torn, self.method,
                      self.key, self.events, self.pipeline]

    def make(self):
        kind = self.random.choice(self.kinds)
        octets = kind()
        return kind.__name__, octets, self.random.random() < 0.7

    def some(self, least, most):
        return self.random.randbytes(self.random.randint(least, most))

    def post(self, body, target="/v1/migrations", extra=""):
        return (("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
                 % (target, len(body), extra)).encode() + body)

    def noise(self):
        return self.some(1, 2000)

    def request_line(self):
        word = self.random.choice([b"GET", b"get", b"G\0T", b"", b"GET GET", b"\xff\xfe", b"POST" * 50])
        rest = self.random.choice([b" / HTTP/1.1", b" / HTTP/9.9", b" /", b"", b" \0 HTTP/1.1", b" * HTTP/1.1",
                                   b" http:// HTTP/1.1", b" / HTTP/1.1 HTTP/1.1"])
        return word + rest + self.random.choice([b"\r\n\r\n", b"\n\n", b"\r\r", b"\r\nHost\r\n\r\n"])

    def headers(self):
        bad = self.random.choice([b"No colon here", b": no name", b"A\0B: c", b"A: b\0c", b"A : b", b" folded: x",
                                  b"A: \xff\xfe\xfd", b"Host: " + b"x" * 30000, b"X: y\r\n" * 100,
                                  b"A" * 20000 + b": b", self.some(1, 60).replace(b"\n", b"")])
        return b"GET /v1/nothing HTTP/1.1\r\n" + bad + b"\r\n\r\n"

    def target(self):
        target = self.random.choice([b"/v1/migrations/%zz", b"/v1/migrations/-1", b"/v1/migrations/%00", b"/v1/%ff%fe",
                                     b"/v1/migrations/99999999999999999999999", b"/v1/sessions?limit=1e9",
                                     b"/v1/sessions?limit=-1", b"/v1/sessions?colour=green", b"/v1/sessions?a=%",
                                     b"/v1/migrations/1?wait=nan", b"/v1/migrations/987654?wait=1e308", b"//v1//sessions",
                                     b"/../../etc/passwd", b"/v1/explain?client=a&home=b", b"/v1/explain",
                                     b"/v1/explain?client=198.18.0.1&home=[2001:db8::1]:80", b"/" + b"a/" * 3000,
                                     b"/v1/migrations?after=x", b"/v1/events?after=-1", b"/v1/events?after=%F0%9F",
                                     b"/v1/sessions?client=1.2.3.4&client=1.2.3.4", b"/\xff\xff",
                                     b"/v1/sessions?" + b"&" * 5000 + b"x=1"])
        return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"

    def broken_json(self):
        text = json.dumps(self.order)
        return self.post((text[:self.random.randint(0, len(text) - 1)]
                          + self.random.choice(["", "}", "]", "\0", ",", "{", "\"", "nul", "}}"])).encode())

    def wrong_member(self):
        order = dict(self.order)
        order[self.random.choice(["form", "To", "client ", "", "\u0000", "id", "__proto__", "x" * 5000])] = 1
        return self.post(json.dumps(order).encode())

    def wrong_type(self):
        order = dict(self.order)
        order[self.random.choice(["client", "from", "to"])] = self.random.choice(
            [1, -1, 1e300, True, [], {}, "", "home:", "\u0000", "1.2.3.4.5", "[::1", "224.0.0.1", "x" * 100000,
             "198.18.0.1:65536", "198.18.0.1:-1", "0x7f.1", "٣.٤.٥.٦", 10 ** 400])
        if self.random.random() < 0.3:
            order[self.random.choice(["scope", "datapath", "passive"])] = self.random.choice([0, "pigeon", [], {}])
        # Whatever else is right: this scope is not.
        order["scope"] = "nothing"
        return self.post(json.dumps(order).encode())

    def not_utf8(self):
        body = json.dumps(self.order).encode()
        place = self.random.randint(1, len(body) - 1)
        return self.post(body[:place] + bytes([self.random.randint(0xf8, 0xff)]) + body[place:])

    def nesting(self):
        depth = self.random.choice([10, 1000, 100000])
        return self.post(self.random.choice([b"[", b"{\"a\":"]) * depth)

    def length(self):
        body = json.dumps(dict(self.order, scope="nothing")).encode()
        field = self.random.choice([b"-1", b"1e3", b"99999999999999999999", b"3000000", b"0x10", b"", b"5, 6",
                                    b"5\r\nContent-Length: 6", b"%d\r\nTransfer-Encoding: chunked" % len(body),
                                    b"%d" % (len(body) + 100), b"%d" % (len(body) // 2)])
        return (b"POST /v1/migrations HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: " + field
                + b"\r\n\r\n" + body)

    def chunks(self):
        chunk = self.random.choice([b"zz\r\n", b"-5\r\nabc", b"ffffffffffffffff\r\nabc", b"5\r\nab\r\n0\r\n\r\n",
                                    b"3\r\nabcdef\r\n0\r\n\r\n", b"1;" + b"x" * 20000 + b"\r\na\r\n0\r\n\r\n"])
        return (b"POST /v1/migrations HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                + chunk)

    def torn(self):
        whole = self.post(json.dumps(dict(self.order, scope="nothing")).encode())
        return whole[:self.random.randint(1, len(whole) - 1)]

    def method(self):
        method = self.random.choice([b"DELETE", b"PUT", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"HEAD", b"PROPFIND"])
        path = self.random.choice([b"/v1/migrations", b"/v1/sessions", b"/healthz", b"/v1/events", b"x:80"])
        return method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"

    def key(self):
        key = self.random.choice(["", "x" * 256, "ü", "a\tb"])
        body = json.dumps(dict(self.order, scope="nothing")).encode()
        return self.post(body, extra="Idempotency-Key: %s\r\n" % key)

    def events(self):
        last = self.random.choice([b"-1", b"x", b"99999999999999", b"1e3", b"184467440737095516160", b"9223372036854775807",
                                   b"18446744073709551615", b"\xff"])
        return b"GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + last + b"\r\n\r\n"

    def pipeline(self):
        return b"".join(self.random.choice([self.target, self.method, self.wrong_type])() for _ in range(5)) + self.noise()
