# SPDX-License-Identifier: GPL-3.0-or-later
"""One TCP connection with both ends in this process, and how it is brought into each of its states."""

import socket
import time

from foreign import MSG_FASTOPEN, abort, fill, tcp
from inspection import sockets
from lab import address

PORT = 7000


class Scene:
    """One connection C:sport ↔ A, both ends in this process. `lose` makes the gateway lose forwarded segments."""

    def __init__(self, lab, listeners, family, sport):
        self.lab, self.family, self.sport, self.listeners = lab, family, sport, listeners
        self.client_ip, self.home = address("c", family), lab.home(family)
        self.c = tcp(lab, "c", self.home, sport)
        self.a = None
        self.request = b""  # what the client has to say first, to whomever it is connected

    def connect(self):
        self.c.settimeout(5)
        self.c.connect((self.home, PORT))
        self.a, _ = self.listeners["a"].accept()
        self.c.sendall(b"x" * 100)
        self.a.recv(100)
        self.a.sendall(b"y" * 100)
        self.c.recv(100)
        time.sleep(0.1)  # for delayed acknowledgements

    def opens(self, data=None):
        """Begin to connect, with data in the SYN if there are any; return without waiting."""
        self.c.setblocking(False)
        self.request = data or b""
        try:
            self.c.sendto(data, MSG_FASTOPEN, (self.home, PORT)) if data else self.c.connect((self.home, PORT))
        except BlockingIOError:
            pass
        time.sleep(0.1)

    def lose(self, direction, more=""):
        """`to-c`: what A sends to this client; `to-a`: what the client sends to A. Behind conntrack, which sees it."""
        word, a = ("ip" if self.family == 4 else "ip6"), address("a", self.family)
        match = {"to-c": "%s saddr %s tcp sport %d tcp dport %d" % (word, a, PORT, self.sport),
                 "to-a": "%s daddr %s tcp dport %d tcp sport %d" % (word, a, PORT, self.sport)}[direction]
        self.lab.nft("g", "table inet lost {\nchain %s {\ntype filter hook forward priority -10;\n%s %s drop\n}\n}\n" % (
            direction, match, more))

    def deafen(self, on):
        """A hears nothing of this connection, as behind a silent packet filter."""
        if on:
            self.lab.nft("a", "table inet deaf {\nchain input {\ntype filter hook input priority -400;\n"
                              "tcp dport %d tcp sport %d drop\n}\n}\n" % (PORT, self.sport))
        else:
            self.lab.run("a", "nft", "delete", "table", "inet", "deaf", check=False)

    def mute(self, on):
        """Nothing of this connection leaves A."""
        if on:
            self.lab.nft("a", "table inet mute {\nchain output {\ntype filter hook output priority 0;\n"
                              "tcp sport %d tcp dport %d drop\n}\n}\n" % (PORT, self.sport))
        else:
            self.lab.run("a", "nft", "delete", "table", "inet", "mute", check=False)

    def heal(self):
        self.lab.run("g", "nft", "delete", "table", "inet", "lost", check=False)
        self.deafen(False)
        self.mute(False)

    def state(self, host):
        """The state of this connection's socket on `c` or `a`; None without one."""
        for state, local, port, peer, peer_port in sockets(self.lab, host):
            if (peer, peer_port, port) == (self.client_ip, self.sport, PORT) and host != "c":
                return state
            if (local, port, peer, peer_port) == (self.client_ip, self.sport, self.home, PORT) and host == "c":
                return state
        return None

    def await_state(self, host, wanted, patience):
        deadline = time.monotonic() + patience
        while self.state(host) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.state(host)

    def close(self):
        for each in (self.a, self.c):
            if each:
                abort(each)
        self.heal()


# How each state is made.

def silent(s):
    s.deafen(True)
    s.opens()


def syn_ack_lost(s):
    s.lose("to-c")
    s.opens()


def fast_open(s):
    s.lose("to-c")
    s.opens(b"request in the SYN")
    s.a, _ = s.listeners["a"].accept()


def idle(s):
    s.connect()


def data_lost(s):
    s.connect()
    s.lose("to-c", "meta length > 200")
    s.lose("to-a", "meta length > 200")
    s.c.setblocking(False)
    s.a.setblocking(False)
    s.c.send(bytes(9000))
    s.a.send(bytes(9000))
    time.sleep(0.05)


def host_reads_nothing(s):
    s.connect()
    fill(s.c)


def client_reads_nothing(s):
    s.connect()
    fill(s.a)


def fin_wait_1(s):
    s.connect()
    s.lose("to-c")
    s.a.shutdown(socket.SHUT_WR)
    # Long enough for a repeated FIN, which conntrack takes for one of the client's.
    time.sleep(0.4)


def fin_wait_2(s):
    s.connect()
    s.a.shutdown(socket.SHUT_WR)
    time.sleep(0.05)


def orphan(s):
    s.connect()
    s.a.close()
    time.sleep(0.05)


def closing(s):
    s.connect()
    s.lose("to-c")
    s.a.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    # A's acknowledgement of C's FIN must not be seen: the gateway would take the connection for finished.
    s.mute(True)
    s.c.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    s.lose("to-a")
    s.mute(False)


def close_wait(s):
    s.connect()
    s.c.shutdown(socket.SHUT_WR)
    time.sleep(0.05)


def last_ack(s):
    close_wait(s)
    s.lose("to-c")
    s.a.close()
    time.sleep(0.05)


def client_fin_lost(s):
    s.connect()
    s.lose("to-a")
    s.c.shutdown(socket.SHUT_WR)
    time.sleep(0.05)


def keepalive(s):
    s.connect()
    s.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.a.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)
    s.deafen(True)
