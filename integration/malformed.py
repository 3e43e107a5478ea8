# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that nobody should send, from a seed: as many as one wants, the same ones each time.

Each begins with something that would be carried out (a migration order, a drain order, a look) and is spoilt in one way, so
that taking it is seen on the network. None may be answered with success.
"""

import json

JSON = "application/json"
# Heads that leave open where their request ends. What comes behind must not be taken for a request.
FRAMING = [
    b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: 2\r\nContent-Length: 2", b"Content-Length: 2, 2",
    b"Content-Length: +2", b"Content-Length: -2", b"Content-Length: 0x2", b"Content-Length: 2 2", b"Content-Length: ",
    b"Content-Length: 99999999999999999999", b"Content-Length: 1e0", b"Content-Length : 2", b"Content-Length\t: 2",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\x00",
    b"X: a\r\n Content-Length: 2", b"X: a\r\n\tb", b"X: a\rContent-Length: 2", b"X: a\nContent-Length: 2\x00",
    b"Content-Length: 2\r\nHost: second", b": 2", b"Content Length: 2", b"Content-Length: 3000000",
]
CHUNKS = [
    b"zz\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"+2\r\n{}\r\n0\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n", b"2 \n{}\r\n0\r\n\r\n",
    b"10000000000000000\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx\r\n0\r\n\r\n", b"1\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n", b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n", b"\r\n2\r\n{}\r\n0\r\n\r\n",
    b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
]


class Malformed:
    """`make()` gives (what it is, octets, whether to half-close, whether there has to be an answer)."""

    def __init__(self, random, order, drain=None):
        """`order` and `drain`: orders that would be carried out, to be spoilt."""
        self.random, self.order = random, order
        self.drain = drain or {"from": order["from"].rpartition(":")[0], "to": [{"host": order["to"]}]}
        # What a receiver has to answer, and what may be no request at all.
        self.whole = [self.broken_json, self.wrong_member, self.wrong_type, self.out_of_range, self.repeated_member,
                      self.not_utf8, self.other_encoding, self.nesting, self.huge, self.media_type, self.framing,
                      self.chunks, self.header_flood, self.target, self.method, self.key, self.events, self.drain_order,
                      self.unknown_id, self.pipeline]
        self.torn_ones = [self.noise, self.request_line, self.headers, self.torn, self.silence]

    def make(self):
        kind = self.random.choice(self.whole + self.torn_ones)
        octets = kind()
        return kind.__name__, octets, self.random.random() < 0.5 or kind == self.torn, kind in self.whole

    def choice(self, *options):
        return self.random.choice(options)

    def some(self, least, most):
        return self.random.randbytes(self.random.randint(least, most))

    def post(self, body, target="/v1/migrations", media_type=JSON, extra=""):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return (("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n"
                 % (target, media_type, len(body), extra)).encode("latin-1") + body)

    # Bodies.

    def broken_json(self):
        text = json.dumps(self.order)
        while True:
            broken = text[:self.random.randint(0, len(text) - 1)] + self.choice(
                "", "}", "]", "\0", ",", "{", "\"", "nul", "}}", ",}", "'", "//", "\u2028") + self.choice("", text, " ")
            try:
                json.loads(broken)
            except ValueError:
                return self.post(broken.encode())

    def wrong_member(self):
        order = dict(self.order)
        order[self.choice("form", "To", "client ", "", "\u0000", "id", "__proto__", "x" * 5000, "tö")] = 1
        return self.post(order)

    def wrong_type(self):
        order = dict(self.order)
        order[self.choice("client", "from", "to")] = self.choice(
            1, -1, 1e300, True, [], {}, "", "home:", "\u0000", "1.2.3.4.5", "[::1", "224.0.0.1", "x" * 100000,
            "198.18.0.1:65536", "198.18.0.1:-1", "0x7f.1", "٣.٤.٥.٦", 10 ** 400, "198.18.0.1:0", "2001:db8::1", "::", "0.0.0.0")
        for name in ("scope", "datapath", "passive", "then", "lifetime", "confirmWithin", "session"):
            if self.random.random() < 0.1:
                order[name] = self.choice([], {}, "pigeon", [[]], {"a": 1})
        return self.post(order)

    def out_of_range(self):
        """A number that no order may have, as JSON can write it or cannot."""
        name = self.choice("lifetime", "confirmWithin")
        number = self.choice("-1", "0", "0.999", "1e400", "-1e400", "1e300", "31536001", "NaN", "Infinity", "-Infinity",
                             "0x10", "01", "1.", ".5", "+5", "1e", "1_000", "9" * 1000, "\"5\"", "true", "-0")
        if self.random.random() < 0.3:
            name, number = "session", self.choice("-1", "1.5", "1e100", "18446744073709551616", "9" * 40, "NaN", "1e-5", "\"1\"")
        return self.post(('{"%s": %s, ' % (name, number) + json.dumps(self.order)[1:]).encode())

    def repeated_member(self):
        """A member that is there twice, one of the values perhaps harmless; some say it with escapes."""
        text, name = json.dumps(self.order), self.choice("client", "from", "to")
        escaped = "".join("\\u%04x" % ord(letter) if self.random.random() < 0.3 else letter for letter in name)
        value = json.dumps(self.choice(self.order[name], "home", "192.0.2.1:80", None))
        return self.post(self.choice('{"%s": %s, %s' % (escaped, value, text[1:]),
                                     '%s, "%s": %s}' % (text[:-1], escaped, value)).encode())

    def not_utf8(self):
        body = json.dumps(self.order).encode()
        place = body.index(b'": "') + self.random.randint(4, 20)
        return self.post(body[:place] + self.choice(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82",
                                                    b"\x80", b"\xf8\x88\x80\x80\x80", b"\\ud800") + body[place:])

    def other_encoding(self):
        return self.post(json.dumps(self.order).encode(self.choice(
            "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp037")))

    def nesting(self):
        depth = self.choice(10, 600, 100000)
        return self.post(self.choice(b"[", b"{\"a\":", b"[" * 5 + b"{\"to\":") * depth + self.choice(b"", b"1" + b"]" * depth))

    def huge(self):
        """Up to 2 MiB of JSON, and just over it."""
        text, size = json.dumps(self.order).encode(), self.choice(1000, 50000, 50000, 2 << 20)
        return self.post(self.choice(
            lambda: b"[" + b"1," * (size // 2) + b"1]", lambda: b'{"client":"' + b"x" * size + b'"}',
            lambda: b"{" + b"".join(b'"%d":0,' % n for n in range(size // 12)) + b'"x":0}',
            lambda: b'{"client":' + b"1" * size + b"}", lambda: b" " * size + text + b"x",
            lambda: b" " * (2 << 20) + text)())

    def media_type(self):
        media_type = self.choice("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
                                 "application/jsonx", "application/json, text/plain", "text/json", "json", "*/*",
                                 "application/xml", "application/json/x", "\xff", "application/json\r\nContent-Type: text/plain")
        return self.post(self.order, media_type=media_type)

    def drain_order(self):
        drain = json.loads(json.dumps(self.drain))
        to = drain["to"][0]
        self.choice(
            lambda: to.update(weight=self.choice(-1, 0, 2 ** 32, 1.5, "3")), lambda: to.update(wieght=3),
            lambda: to.update(host=self.choice("", "x", 1, None, "0.0.0.0", "[::]", drain["from"])),
            lambda: drain.update(to=self.choice([], {}, None, drain["to"] * 2, drain["to"] + [{"host": "home"}])),
            lambda: drain.update(rate=self.choice(-1, 0, 1e300, "5")), lambda: drain.update(inFlight=self.choice(0, -1, 2 ** 70)),
            lambda: drain.update(canary=self.choice(0, -0.5, 1.01, "5%")), lambda: drain.update(atMost=self.choice(0, -1, 1.5)),
            lambda: drain.update(order="random"), lambda: drain.update(settle=-1), lambda: drain.update(scope="service"),
            lambda: drain.update(dryRun="no"), lambda: drain.update(client="192.0.2.1/33"), lambda: drain.pop("from"),
            lambda: drain.update(sessions=self.choice(1, [1], [{"client": "x", "home": "y"}], [{}])))()
        return self.post(drain, "/v1/drains")

    # Heads.

    def framing(self):
        """Where it ends is anybody's guess; what may be taken for the next request is an order that would be carried out."""
        head = b"POST /v1/migrations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        body = self.choice(b"{}", b"0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n", b"")
        return head + self.random.choice(FRAMING) + b"\r\n\r\n" + body + self.post(self.order)

    def chunks(self):
        return (b"POST /v1/migrations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + self.random.choice(CHUNKS) + self.post(self.order))

    def header_flood(self):
        fields = self.choice(b"A: b\r\n" * 100, b"A: " + b"x" * 20000 + b"\r\n", b"A" * 20000 + b": b\r\n",
                             b"".join(b"X-%d: %s\r\n" % (n, b"y" * 300) for n in range(60)), b"Cookie: a=b; " * 3000 + b"\r\n")
        return b"GET " + self.choice(b"/healthz", b"/v1/sessions", b"/" + b"x" * 20000) + b" HTTP/1.1\r\nHost: x\r\n" + (
            fields + b"\r\n")

    def headers(self):
        bad = self.choice(b"No colon here", b": no name", b"A\0B: c", b"A: b\0c", b"A : b", b" folded: x", b"A\x7f: b",
                          self.some(1, 60).replace(b"\n", b""))
        return b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n" + bad + b"\r\n\r\n"

    def target(self):
        target = self.choice(b"/v1/migrations/%zz", b"/v1/migrations/-1", b"/v1/migrations/%00", b"/v1/%ff%fe",
                             b"/v1/migrations/99999999999999999999999", b"/v1/sessions?limit=1e9", b"/v1/sessions?limit=-1",
                             b"/v1/sessions?colour=green", b"/v1/sessions?a=%", b"/v1/migrations/1?wait=nan",
                             b"/v1/migrations/987654?wait=1e308", b"//v1//sessions", b"/../../etc/passwd", b"/v1/sessions/",
                             b"/v1/explain?client=a&home=b", b"/v1/explain", b"/" + b"a/" * 3000, b"/v1/migrations?after=x",
                             b"/v1/explain?client=198.18.0.1&home=[2001:db8::1]:80", b"/v1/events?after=-1", b"/V1/sessions",
                             b"/v1/events?after=%F0%9F", b"/v1/sessions?client=1.2.3.4&client=1.2.3.4", b"/\xff\xff",
                             b"/v1/sessions?" + b"&" * 5000 + b"x=1", b"/v1/drains?colour=green", b"/v1/drains/1?colour=green",
                             b"/v1/drains/x", b"/v1/counters?x", b"/v1/drains/1?wait=-1", b"/v1/sessions?limit=18446744073709551616",
                             b"http://x", b"*", b"x:80", b"/v1/connections?client=%00", b"/v1/sessions?client=any%20",
                             b"/v1/events?migration=1.5", b"/v1/events?drain=", b"/healthz?a=b")
        return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"

    def method(self):
        """A method that is not known there, with an order that would be carried out where it is."""
        method = self.choice("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "MKCOL", "GET /v1/migrations/1/confirm")
        path = "" if " " in method else self.choice(" /v1/migrations", " /v1/sessions", " /healthz", " /v1/events", " /v1/drains")
        whole = self.post(self.order)
        return (method + path).encode() + whole[whole.index(b" HTTP/1.1"):]

    def key(self):
        return self.post(self.order, extra="Idempotency-Key: %s\r\n" % self.choice(
            "", "x" * 256, "\xfc", "a\tb", "a\r\nIdempotency-Key: b"))

    def events(self):
        last = self.choice(b"-1", b"x", b"99999999999999", b"1e3", b"184467440737095516160", b"9223372036854775807", b"0x1",
                           b"18446744073709551615", b"\xff", b"1, 2", b"1\r\nLast-Event-ID: 2")
        return b"GET /v1/events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " + last + b"\r\n\r\n"

    def unknown_id(self):
        """An order about a migration or a drain that is not there."""
        what = self.choice("/v1/migrations/%s/confirm", "/v1/drains/%s/pause", "/v1/drains/%s/resume", "/v1/drains/%s/cancel")
        number = self.choice("0", "987654321", "-1", "x", "18446744073709551615", "18446744073709551616", "%20", "1.5", "%2f")
        return self.post(b"", what % number + self.choice("", "", "?colour=green"))

    # What may be no request at all.

    def noise(self):
        return self.some(1, 2000)

    def request_line(self):
        word = self.choice(b"GET", b"get", b"G\0T", b"", b"GET GET", b"\xff\xfe", b"POST" * 50, b"PRI", b"CONNECT", b"HEAD")
        rest = self.choice(b" / HTTP/1.1", b" / HTTP/9.9", b" /", b"", b" \0 HTTP/1.1", b" * HTTP/1.1", b" * HTTP/2.0",
                           b" http:// HTTP/1.1", b" / HTTP/1.1 HTTP/1.1", b"\t/\tHTTP/1.1", b" / HTTP/1.0", b" /  HTTP/1.1")
        return word + rest + self.choice(b"\r\n\r\n", b"\n\n", b"\r\r", b"\r\nHost\r\n\r\n", b"\r\nHost: x\r\nHost: y\r\n\r\n")

    def torn(self):
        """The beginning of a request that would be carried out; the rest never comes."""
        whole = self.post(self.order)
        return whole[:self.random.randint(1, len(whole) - 1)]

    def silence(self):
        return self.choice(b"", b"\r\n", b"\r\n" * 500, b"\0", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")

    def pipeline(self):
        return b"".join(self.choice(self.target, self.method, self.wrong_type, self.unknown_id, self.repeated_member)()
                        for _ in range(5)) + self.choice(self.noise, self.framing, self.torn)()
