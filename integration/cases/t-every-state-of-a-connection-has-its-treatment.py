#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection is moved out of every state that TCP knows, made with real sockets: the from-host loses its half, the
client is reset, kicked, or left alone as docs/connection-states.md says, and what it opens next is on the to-host."""

import errno
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from capture import ACK, RST, SYN, Capture
import states
from foreign import abort, fate, listener, tcp
from inspection import children
from lab import Lab, address, endpoint
from product import Daemon
from stage import Stage, captures
from states import PORT, Scene

# Between the kernel's change of the table and the daemon's note of the time a packet may still be on its way.
SLACK = 0.001
# Who says so: forwarded segments reach an end with one hop less than the gateway's own.
FORWARDED, GATEWAY = 63, 64

# Name, how it is made, A's socket, C's socket, what the client experiences, the outcome.
ROWS = (
    ("SYN_SENT at C, its host silent", states.silent, None, "SYN-SENT", "kicked", "unproven"),
    ("SYN_RECV at A, its SYN-ACK lost", states.syn_ack_lost, "SYN-RECV", "SYN-SENT", "kicked", "proven"),
    ("a Fast Open child in SYN_RECV, with data", states.fast_open, "SYN-RECV", "SYN-SENT", "kicked", "proven"),
    ("ESTABLISHED, idle", states.idle, "ESTAB", "ESTAB", "reset", "proven"),
    ("ESTABLISHED, data lost in both directions", states.data_lost, "ESTAB", "ESTAB", "reset", "proven"),
    ("zero window at A", states.host_reads_nothing, "ESTAB", "ESTAB", "reset", "proven"),
    ("zero window at C", states.client_reads_nothing, "ESTAB", "ESTAB", "reset", "proven"),
    ("FIN_WAIT1 at A, its FIN lost", states.fin_wait_1, "FIN-WAIT-1", "ESTAB", "reset", "proven"),
    ("FIN_WAIT2 at A, CLOSE_WAIT at C", states.fin_wait_2, "FIN-WAIT-2", "CLOSE-WAIT", "ended", "proven"),
    ("FIN_WAIT2 at A without a process", states.orphan, "FIN-WAIT-2", "CLOSE-WAIT", "ended", "proven"),
    ("CLOSING at A", states.closing, "CLOSING", "FIN-WAIT-1", "reset", "proven"),
    ("CLOSE_WAIT at A, FIN_WAIT2 at C", states.close_wait, "CLOSE-WAIT", "FIN-WAIT-2", "left alone", "proven"),
    ("LAST_ACK at A, FIN_WAIT2 at C", states.last_ack, "LAST-ACK", "FIN-WAIT-2", "left alone", "proven"),
    ("FIN_WAIT1 at C, its FIN lost", states.client_fin_lost, "ESTAB", "FIN-WAIT-1", "answered", "proven"),
    ("ESTABLISHED, A deaf until its keepalive", states.keepalive, "ESTAB", "ESTAB", "reset", "unproven"),
)
# What the report says of the client then.
CLIENT_RESULT = {"reset": ("proven", "reconnected"), "ended": ("proven", "reconnected"), "kicked": ("reconnected",),
                 "left alone": ("leaving",), "answered": ("leaving",)}


class Theatre:
    """The lab, the daemon and the listeners; rows are played one after the other, each on a port of its own."""

    def __init__(self, lab, daemon):
        self.lab, self.daemon, self.sport = lab, daemon, 21000
        self.listeners = {family: {host: listener(lab, host, address(host, family), PORT) for host in "ab"}
                          for family in (4, 6)}

    def scene(self, family):
        self.sport += 1
        return Scene(self.lab, self.listeners[family], family, self.sport)

    def migrate(self, scene, *more):
        """Begin a migration; a function that waits for its answer."""
        found = []
        to = address("b", scene.family)
        client = endpoint(scene.client_ip, scene.sport)
        thread = threading.Thread(target=lambda: found.append(self.daemon.migrate(
            client, endpoint(scene.home, PORT), to, *more)))
        thread.start()

        def answer():
            thread.join()
            return found[0]
        return answer

    def home_again(self, scene):
        return self.daemon.migrate(endpoint(scene.client_ip, scene.sport), endpoint(scene.home, PORT), None)


def served_by_b(scene, client):
    """Whether a connected client is B's, with data both ways."""
    try:
        accepted, peer = scene.listeners["b"].accept()
        while peer[:2] != (scene.client_ip, scene.sport):
            accepted.close()  # the gateway has asked whether B listens
            accepted, peer = scene.listeners["b"].accept()
        accepted.settimeout(3)
        client.settimeout(3)
        accepted.sendall(b"B")
        served = client.recv(1) == b"B"
        client.sendall(b"c")
        heard = b""
        while not heard.endswith(b"c"):
            octets = accepted.recv(64)
            if not octets:
                return "no: B has heard %r" % heard
            heard += octets
        return served and heard == scene.request + b"c"
    except OSError as error:
        return "no: %r" % error
    finally:
        abort(client)


def play(case, theatre, row, family, datapath):
    name, make, at_a, at_c, experience, outcome = row
    what = "%s (IPv%d, %s)" % (name, family, datapath)
    lab = theatre.lab
    scene = theatre.scene(family)
    at = {host: Capture(lab, host, name="%s-%d" % (host, scene.sport)) for host in "cab"}
    with captures(*at.values()):
        try:
            make(scene)
            case.equal((scene.state("a"), scene.state("c")), (at_a, at_c), what + ": the state is there")
            answer = theatre.migrate(scene, "--datapath", datapath)
            check(case, scene, what, experience, at_a)
            if make is states.keepalive:
                time.sleep(3.2)
                scene.deafen(False)
            answer = answer()
            case.equal((answer.code, answer["outcome"]), (0 if outcome == "proven" else 4, outcome),
                       what + ": the outcome is " + outcome)
            case.equal(scene.await_state("a", None, 3) if at_a else scene.state("a"), None, what + ": A has no socket")
            said = [each.get("clientReset") for each in answer["connections"] or ()]
            case.ok(len(said) == 1 and said[0] in CLIENT_RESULT[experience], what + ": the report says so",
                    lambda: str(answer))
            returned = theatre.home_again(scene)
            case.equal(returned.code, 0, what + ": the session goes home again")
        finally:
            scene.close()
    wire(case, scene, what, at, answer, experience, at_a)


def check(case, scene, what, experience, at_a):
    """What the client experiences, and that its next connection is B's."""
    c = scene.c
    if experience == "kicked":
        case.equal(served_by_b(scene, c), True, what + ": the client's attempt succeeds, with B")
        return
    if experience == "left alone":
        case.equal(scene.await_state("a", None, 3), None, what + ": A has lost its half")
        time.sleep(0.3)
        case.equal(scene.state("c"), "FIN-WAIT-2", what + ": C's socket is as it was")
    elif experience == "answered":
        case.equal(scene.await_state("c", None, 3), None, what + ": C's repeated FIN is answered")
    elif experience == "ended":
        case.equal(scene.await_state("c", None, 3), None, what + ": C has no socket any more")
        case.equal(fate(c), "EOF", what + ": the application reads its end of file")
        try:
            c.send(b"more")
            error = None
        except OSError as caught:
            error = caught.errno
        case.equal(error, errno.EPIPE, what + ": and learns of the reset when it writes")
    else:
        case.equal(fate(c), errno.ECONNRESET, what + ": the application is told of a reset")
    abort(c)
    scene.c = tcp(scene.lab, "c", scene.home, scene.sport)
    scene.c.settimeout(5)
    try:
        scene.c.connect((scene.home, PORT))
        served = served_by_b(scene, scene.c)
    except OSError as error:
        served = "no: %r" % error
    case.equal(served, True, what + ": the next connection from the same port is B's")


def wire(case, scene, what, at, answer, experience, at_a):
    """The segments that the treatment consists of, as captured at both ends."""
    switched = answer["switchedAt"] or 0
    client, home, b = scene.client_ip, scene.home, address("b", scene.family)
    to_c = [s for s in at["c"].segments(destination=client, dport=scene.sport) if s.at > switched]
    from_c = [s for s in at["c"].segments(source=client, sport=scene.sport) if s.at > switched]
    to_a = [s for s in at["a"].segments(source=client, sport=scene.sport) if s.at > switched]
    from_a = [s for s in at["a"].segments(destination=client, dport=scene.sport) if s.at > switched]
    syn = next((s for s in from_c if s.flags & (SYN | ACK) == SYN), None)
    syn_at_b = next((s for s in at["b"].segments(source=client, sport=scene.sport)
                     if s.flags & (SYN | ACK) == SYN and s.at > switched), None)
    if not case.ok(syn and syn_at_b, what + ": a SYN of the client's reaches B"):
        return
    before = [s for s in to_c if s.at < syn.at]
    case.equal([str(s) for s in before if s.ttl == FORWARDED and s.at > switched + SLACK], [],
               what + ": nothing of A's reaches C after the switch")
    case.equal([str(s) for s in to_a if s.ttl == FORWARDED and s.at > switched + SLACK and s.at < syn_at_b.at], [],
               what + ": nothing of C's reaches A after the switch")
    spoken = [s for s in before if s.ttl == GATEWAY]
    resets = [s for s in spoken if s.flags & RST]
    if experience == "kicked":
        case.equal([str(s) for s in resets], [], what + ": C is sent no RST, which would refuse its attempt")
        kick = [s for s in spoken if s.flags == ACK]
        case.ok(kick and len(spoken) == len(kick) and kick[0].source == home, what + ": it is sent an ACK in home's name",
                lambda: "\n".join(map(str, spoken)))
        # A retransmission time-out would be a second.
        case.ok(bool(kick) and syn_at_b.at - kick[0].at < 0.3, what + ": which brings its SYN to B at once, %.0f ms" % (
            (syn_at_b.at - switched) * 1e3))
    elif experience == "left alone":
        case.equal([str(s) for s in spoken], [], what + ": nothing is sent to C")
    else:
        told = {s.ack for s in from_c if s.flags & ACK and s.at < syn.at}
        case.ok(bool(resets) and resets[-1].seq in told and resets[-1].source == home,
                what + ": C is sent a RST in home's name at the number that it has told",
                lambda: "%s\n%s" % ("\n".join(map(str, resets)), told))
        if experience == "answered":
            case.ok(bool(resets) and any(s.at < resets[0].at and s.flags & 1 for s in from_c),
                    what + ": and only when it has spoken")
            case.equal([str(s) for s in spoken if s.at < resets[0].at], [], what + ": unasked")
    if at_a:
        told = {s.ack for s in from_a if s.flags & ACK}
        at_told = [s for s in to_a if s.flags & RST and s.seq in told]
        case.ok(bool(at_told), what + ": A is sent a RST at the number that it has told",
                lambda: "\n".join(map(str, to_a + from_a)))
    case.equal([str(s) for capture in at.values() for s in capture.segments() if not s.good][:5], [],
               what + ": every checksum is right")


def time_wait(case, theatre, family, datapath, closer):
    """A finished connection beside a living one of the same client: only the living one is touched."""
    what = "TIME_WAIT at %s (IPv%d, %s)" % (closer, family, datapath)
    lab = theatre.lab
    done, living = theatre.scene(family), theatre.scene(family)
    at = {host: Capture(lab, host, name="%s-tw-%d" % (host, done.sport)) for host in "ca"}
    with captures(*at.values()):
        try:
            done.connect()
            first, second = (done.a, done.c) if closer == "A" else (done.c, done.a)
            first.close()
            time.sleep(0.05)
            second.close()
            time.sleep(0.05)
            case.equal(done.state(closer.lower()), "TIME-WAIT", what + ": the state is there")
            # Alone, it is no connection that could be moved.
            answer = theatre.migrate(done, "--datapath", datapath)()
            case.equal(answer.code, 3, what + ": there is no connection to move any more")
            living.connect()
            found = []
            thread = threading.Thread(target=lambda: found.append(theatre.daemon.migrate(
                living.client_ip, endpoint(living.home, PORT), address("b", family), "--datapath", datapath)))
            thread.start()
            case.equal(fate(living.c), errno.ECONNRESET, what + ": the living connection beside it is reset")
            for scene in (living, done) if closer == "A" else (living,):
                abort(scene.c)
                scene.c = tcp(lab, "c", scene.home, scene.sport)
                scene.c.settimeout(5)
                scene.c.connect((scene.home, PORT))
                case.equal(served_by_b(scene, scene.c), True, what + ": a connection from port %s is B's" % (
                    "of the finished one" if scene is done else "of the living one"))
            thread.join()
            case.equal((found[0].code, found[0]["outcome"], len(found[0]["connections"] or ())), (0, "proven", 1),
                       what + ": one connection is moved, proven")
            case.note(str(found[0]))
            if closer == "C":
                case.equal(done.state("c"), "TIME-WAIT", what + ": it stands where it stood")
            returned = theatre.daemon.migrate(living.client_ip, endpoint(living.home, PORT), None)
            case.equal(returned.code, 0, what + ": the session goes home again")
        finally:
            done.close()
            living.close()
    if found:
        switched = found[0]["switchedAt"]
        meddled = [str(s) for s in at["a"].segments(sport=done.sport) + at["c"].segments(dport=done.sport)
                   if s.at > switched and s.ttl == GATEWAY and (s.source != address("a", family))]
        case.equal([] if closer == "A" else meddled, [], what + ": nothing is sent about it")


def opened_meanwhile(case, family, datapath):
    """Connections that a client opens and closes while the to-host is asked: the second look sees what the first could not."""
    what = "opened while the to-host is asked (IPv%d, %s)" % (family, datapath)
    with Stage([PORT], check_timeout=5000) as stage:
        names = ["old", "closed"]
        for name in names:
            stage.open(name, "rr", PORT, family, think=10)
        # Twice: the second time the client's binding is there already, and in datapath `queue` what it carries is known.
        for letter, new in (("b", "new"), ("d", "newer")):
            # The gateway's question is dropped once, and asked again a second later.
            stage.lab.nft(letter, "table inet late {\nchain input {\ntype filter hook input priority 0;\n"
                                  "tcp flags & (syn | ack) == syn drop\n}\n}\n")
            mark, found = stage.client.mark(), []
            thread = threading.Thread(target=lambda: found.append(stage.migrate("old", letter, "--datapath", datapath)[0]))
            thread.start()
            time.sleep(0.4)
            stage.client.close(names.pop())
            stage.open(new, "rr", PORT, family, think=10)
            names.append(new)
            stage.lab.run(letter, "nft", "delete", "table", "inet", "late")
            thread.join()
            case.equal((found[0].code, found[0]["outcome"], len(found[0]["connections"] or ())), (0, "proven", 2),
                       what + ": two connections are moved to %s, proven" % letter.upper())
            case.note(str(found[0]))
            for name in names:
                case.ok(bool(stage.client.await_up(name, letter.upper(), mark, 5)) and stage.client.works(name),
                        what + ": connection \"%s\" works on %s" % (name, letter.upper()), lambda: str(found[0]))
            waited = [step["at"] for step in found[0]["timeline"] if step["step"] == "located again"]
            case.ok(waited and waited[0] > 500, what + ": there was time for it", lambda: str(found[0]))
        stage.healthy(case)


def body(case):
    opened_meanwhile(case, 4, "kernel")
    opened_meanwhile(case, 6, "queue")
    if case.full:
        opened_meanwhile(case, 6, "kernel")
        opened_meanwhile(case, 4, "queue")
    with Lab() as lab:
        for host in "cab":
            lab.sysctl(host, "net.ipv4.tcp_fastopen=0x207")
        daemon = Daemon(lab, guard_proven=2, guard_client=4).start()
        theatre = Theatre(lab, daemon)
        for family, datapath in ((4, "kernel"), (6, "kernel"), (4, "queue"), (6, "queue")):
            for index, row in enumerate(ROWS):
                # The short version: every state once, the principal ones in every combination.
                if case.full or (family, datapath) == (4, "kernel") or index in (0, 1, 4, 11) and (
                        family, datapath) != (4, "queue"):
                    play(case, theatre, row, family, datapath)
            if case.full or (family, datapath) in ((4, "kernel"), (6, "queue")):
                for closer in "AC":
                    time_wait(case, theatre, family, datapath, closer)
        case.ok(daemon.child.poll() is None, "the daemon runs", daemon.tail)
        case.equal(children(daemon.pid), [], "the daemon has left no process")


if __name__ == "__main__":
    tap.main(body)
