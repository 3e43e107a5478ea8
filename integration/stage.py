# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab with servers, a client and the daemon in it: what nearly every case begins with."""

import contextlib
import time

from inspection import children, elements, sockets, stale_entries, table_exists
from lab import HOSTS, Lab, address, endpoint
from product import Daemon
from traffic import Client, Servers

# Standing guards end soon, so that a case can see them end; not before the reset handshake's three seconds, though.
SHORT = {"guard_proven": 2, "guard_client": 4}


class Stage:
    """`with Stage(…) as stage`: `lab`, `servers`, `client`, `daemon`; and the sessions opened, by name.

    The servers listen on `ports`, where nothing may be left behind, and on `more_ports`.
    """

    def __init__(self, ports, lab=None, more_ports=(), **settings):
        self.ports, self.more_ports = ports, list(more_ports)
        self.lab = Lab(**(lab or {}))
        self.settings = dict(SHORT, **settings)
        self.sessions = {}

    def __enter__(self):
        self.lab.__enter__()
        try:
            self.servers = Servers(self.lab, list(self.ports) + self.more_ports)
            self.client = Client(self.lab)
            self.daemon = Daemon(self.lab, **self.settings).start()
        except BaseException:
            self.lab.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *what):
        return self.lab.__exit__(*what)

    def open(self, name, mode, port, family=4, sport=0, scope=None, **options):
        """Open a session of the client to home; its `up` event."""
        up = self.client.open(name, mode, self.lab.home(family), port, sport=sport, **options)
        self.sessions[name] = {"port": port, "family": family, "scope": scope or ("connection" if sport else "client"),
                               "sport": sport}
        return up

    def home(self, name):
        session = self.sessions[name]
        return endpoint(self.lab.home(session["family"]), session["port"])

    def who(self, name):
        """The client of a session as the command line names it: with its port when the scope is one connection."""
        session = self.sessions[name]
        if session["scope"] == "service":
            return "any"
        ip = address("c", session["family"])
        return endpoint(ip, session["sport"]) if session["scope"] == "connection" else ip

    def host(self, name, letter):
        """A host's address, or home's (which may be a virtual one)."""
        family = self.sessions[name]["family"]
        return self.lab.home(family) if letter == "a" else address(letter, family)

    def migrate(self, name, letter, *more, **options):
        """Migrate a session to a host (a, b, d), or home again with `return`; (the answer, a mark before it)."""
        mark = self.client.mark()
        to = None if letter == "return" else self.host(name, letter)
        return self.daemon.migrate(self.who(name), self.home(name), to, *more, **options), mark

    def moved(self, name, letter, *more, patience=5, **options):
        """Migrate and wait for the first byte from the new host: (answer, `up` event or None, mark)."""
        answer, mark = self.migrate(name, letter, *more, **options)
        server = "A" if letter == "return" else letter.upper()
        return answer, self.client.await_up(name, server, mark, patience), mark

    # What must not be left.

    def leftover_elements(self, patience=8, ignore=()):
        """Elements still in our table after `patience` seconds at most; [] as soon as there are none."""
        deadline = time.monotonic() + patience
        while True:
            left = [each for each in elements(self.lab) if each[0] not in ignore] if table_exists(self.lab) else []
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.25)

    def leftover_connections(self, patience=12):
        """ESTABLISHED conntrack entries without sockets after `patience` seconds at most. One that has seen a RST whose number it did
        not expect says so for ten seconds."""
        deadline = time.monotonic() + patience
        while True:
            stale = stale_entries(self.lab, self.ports)
            if not stale or time.monotonic() > deadline:
                return stale
            time.sleep(0.25)

    def orphans(self, patience=8):
        """Sockets of hosts that the client has no counterpart for (the from-host's side of a session that has gone)."""
        deadline = time.monotonic() + patience
        while True:
            found = [(host, socket) for host in HOSTS for socket in sockets(self.lab, host)
                     if socket[0] in ("ESTAB", "SYN-RECV", "CLOSE-WAIT") and socket[2] in self.ports
                     and not self._counterpart(host, socket)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.25)

    def _counterpart(self, host, socket):
        family = 6 if ":" in socket[1] else 4
        home, client = self.lab.home(family), (socket[3], socket[4])
        return any(s[0] == "ESTAB" and (s[1], s[2]) == client and (s[3], s[4]) == (home, socket[2])
                   for s in sockets(self.lab, "c"))

    def clean(self, case, what="", patience=8):
        """Assert that nothing of past migrations is left in the table, in conntrack and in the process list."""
        left = self.leftover_elements(patience)
        case.ok(not left, "no element is left in the table" + what, lambda: "\n".join(map(str, left)))
        stale = self.leftover_connections()
        case.ok(not stale, "no entry of a gone connection is left in conntrack" + what, lambda: "\n".join(stale))
        found = self.orphans()
        case.ok(not found, "no host holds a connection that the client does not have" + what,
                lambda: "\n".join(map(str, found)))
        case.equal(children(self.daemon.pid), [], "the daemon has left no process" + what)

    def healthy(self, case):
        """Assert that nobody has seen octets that nobody sent, and that the daemon still runs."""
        corrupt = self.servers.corrupt() + self.client.all(lambda event: event["event"] == "corrupt")
        case.equal(corrupt, [], "no octet was changed on its way")
        case.ok(self.daemon.child.poll() is None, "the daemon runs", self.daemon.tail)


@contextlib.contextmanager
def captures(*each):
    """Several captures at once."""
    with contextlib.ExitStack() as stack:
        for capture in each:
            stack.enter_context(capture)
        yield each
