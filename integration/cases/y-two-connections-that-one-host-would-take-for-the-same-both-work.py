#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client has a connection of its own with the to-host, from the very port of the session that is moved there. One of the
two gets another source port at that host, whichever comes second, and both carry data to their ends. Port ranges, and
translations that a controller has stated. Both datapaths, both families."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from inspection import ruleset, sockets
from lab import address, endpoint
from product import DONE, FAILED, USAGE
from stage import Stage

PORT, OTHER = 7000, 7001
RATE = 400_000  # octets per second and direction


def ports_at(stage, host, family, port=PORT):
    """The client's ports at a host's port, as the host sees them, sorted."""
    client = address("c", family)
    return sorted(s[4] for s in sockets(stage.lab, host) if s[0] == "ESTAB" and s[2] == port and s[3] == client)


def open_direct(stage, family, sport, name="own", port=PORT):
    return stage.client.open(name, "bulk", address("b", family), port, sport=sport, rate=RATE)


def undisturbed(case, stage, what, mark=0, name="own"):
    case.equal(stage.client.seen(name, "down", "failed", mark=mark), [], what + ": the client's own connection was not touched")
    case.ok(stage.client.works(name), what + ": and carries data")


def both(case, stage, what, family, sport):
    """The session is on B beside the client's own connection; both carry data, under two ports."""
    case.ok(stage.client.works("s"), what + ": the session carries data on B", stage.daemon.tail)
    undisturbed(case, stage, what)
    seen = ports_at(stage, "b", family)
    case.ok(len(seen) == 2 and sport in seen, what + ": B sees two ports, one of them the client's", lambda: str(seen))
    return [port for port in seen if port != sport][0] if len(seen) == 2 else None


def onwards(case, stage, what, family, sport, datapath):
    """The next migrations of the session reset its connection and not the other one."""
    answer, up, _ = stage.moved("s", "d", "--datapath", datapath)
    case.ok(answer.code == DONE and bool(up), what + ": B → D is proven", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
    undisturbed(case, stage, what + ", after B → D")
    case.equal(len(ports_at(stage, "b", family)), 1, what + ": B has the client's own connection and no other")
    case.ok(stage.client.works("s"), what + ": the session works on D")
    answer, up, _ = stage.moved("s", "b", "--datapath", datapath)
    case.ok(answer.code == DONE and bool(up), what + ": D → B again is proven", lambda: str(answer))
    both(case, stage, what + ", on B again", family, sport)
    answer, up, _ = stage.moved("s", "return")
    case.ok(answer.code == DONE and bool(up), what + ": B → home is proven", lambda: str(answer))
    undisturbed(case, stage, what + ", after B → home")
    case.ok(stage.client.works("s"), what + ": the session works at home")


def conflict(case, datapath, family, sport, own_first):
    what = "%s datapath, IPv%d, port %d, %s first" % (datapath, family, sport, "own" if own_first else "session")
    with Stage([PORT]) as stage:
        stage.daemon.configure()
        if own_first:
            open_direct(stage, family, sport)
        stage.open("s", "bulk", PORT, family, sport=sport, rate=RATE)
        answer, up, mark = stage.moved("s", "b", "--datapath", datapath)
        case.ok(answer.code == DONE and bool(up), what + ": A → B is proven", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        if not own_first:
            began = time.monotonic()
            open_direct(stage, family, sport)
            took = time.monotonic() - began
            case.ok(took < 0.9, what + ": the client's own connection lost no SYN", "%.3f s" % took)
        other = both(case, stage, what, family, sport)
        if sport < 1024:
            case.ok(other is not None and other < 1024, what + ": a privileged port stays privileged", lambda: str(other))
        elif other is not None:
            case.ok(other >= 1024, what + ": no other port becomes privileged", lambda: str(other))
        # The client drops its connection and comes back from the same port: still B, still beside the other.
        took = stage.client.cycle("s")
        case.ok(took is not None, what + ": the client comes back to B from the same port", stage.daemon.tail)
        both(case, stage, what + ", after the client has come back", family, sport)
        stage.daemon.kill()
        stage.daemon.start()
        both(case, stage, what + ", with a new daemon", family, sport)
        onwards(case, stage, what, family, sport, datapath)
        stage.client.close("own")
        stage.client.close("s")
        stage.clean(case, ": " + what, patience=25)
        stage.healthy(case)


def displaced(case, family):
    """The client's own connection came second and has another port from the kernel's NAT. B does not know it by the
    client's port, but the gateway does."""
    what = "the own connection has another port, IPv%d" % family
    with Stage([PORT]) as stage:
        stage.open("s", "bulk", PORT, family, sport=20007, rate=RATE)
        for letter, datapath in (("b", "kernel"), ("d", "kernel"), ("b", "queue")):
            answer, up, _ = stage.moved("s", letter, "--datapath", datapath)
            case.ok(answer.code == DONE and bool(up), "%s: %s by the %s is proven" % (what, letter, datapath), lambda: str(answer))
            if letter == "b" and datapath == "kernel":
                open_direct(stage, family, 20007)
                both(case, stage, what, family, 20007)
        case.ok(stage.client.works("s"), what + ": the session carries data on B", stage.daemon.tail)
        undisturbed(case, stage, what)
        case.equal(len(ports_at(stage, "b", family)), 2, what + ": B sees two ports")
        answer, up, _ = stage.moved("s", "return")
        case.ok(answer.code == DONE and bool(up), what + ": and home", lambda: str(answer))
        undisturbed(case, stage, what + ", at home")
        stage.client.close("own")
        stage.client.close("s")
        stage.clean(case, ": " + what, patience=25)
        stage.healthy(case)


def homecoming(case, family):
    """The client may come back to B from this port at any moment: a session that is moved there takes another one."""
    what = "a client that may come back, IPv%d" % family
    with Stage([PORT]) as stage:
        stage.open("s", "bulk", PORT, family, sport=20008, rate=RATE)
        stage.client.open("x", "idle", address("b", family), PORT, sport=20008, reconnect=False)
        client, there = endpoint(address("c", family), 20008), endpoint(address("b", family), PORT)
        answer = stage.daemon.migrate(client, there, address("d", family))
        case.equal(answer.code, DONE, what + ": the other session moves from B to D, and its client does not come back")
        answer = stage.daemon.migrate(client, there, None)
        case.equal(answer.code, DONE, what + ": and is home again")
        answer, up, _ = stage.moved("s", "b", "--datapath", "queue")
        case.ok(answer.code == DONE and bool(up), what + ": A → B is proven", lambda: str(answer))
        left = [each for each in stage.daemon.sessions() if each["home"] == there]
        case.ok(left and left[0]["transits"], what + ": while the other session stops its client's segments", str(left))
        open_direct(stage, family, 20008)
        both(case, stage, what, family, 20008)
        time.sleep(stage.settings["guard_client"] + 1)
        case.equal([each for each in stage.daemon.sessions() if each["home"] == there], [], what + ": the other session is over")
        case.ok(stage.client.cycle("own") is not None and stage.client.cycle("s") is not None, what + ": both come back")
        both(case, stage, what, family, 20008)
        stage.healthy(case)


def moved_too(case, datapath, family):
    """The client's own connection with B is moved as well, and comes back."""
    what = "both are moved, %s datapath, IPv%d" % (datapath, family)
    own = endpoint(address("c", family), 20010), endpoint(address("b", family), PORT)
    with Stage([PORT]) as stage:
        stage.open("s", "bulk", PORT, family, sport=20010, rate=RATE)
        stage.moved("s", "b", "--datapath", "queue")
        open_direct(stage, family, 20010)
        both(case, stage, what, family, 20010)
        for to in (address("d", family), None):
            server, mark = "D" if to else "B", stage.client.mark()
            answer = stage.daemon.migrate(*own, to, *(("--datapath", datapath) if to else ()))
            up = stage.client.await_up("own", server, mark, 5)
            case.ok(answer.code == DONE and bool(up), "%s: the own one is on %s" % (what, server), lambda: "%s\n%s" % (answer, stage.daemon.tail()))
            for name in ("s", "own"):
                case.ok(stage.client.works(name), "%s: %s works, on %s" % (what, name, server))
                case.ok(stage.client.cycle(name) is not None, "%s: and comes back" % what)
                case.ok(stage.client.works(name), "%s: and works" % what)
            # So long that whoever looks for ends of translations has none to look for.
            time.sleep(stage.settings["guard_client"] + 1)
        stage.moved("s", "return")
        case.ok(stage.client.works("s") and stage.client.works("own"), what + ": both work at home")
        stage.client.close("own")
        stage.client.close("s")
        stage.clean(case, ": " + what, patience=25)
        stage.healthy(case)


def follower(case, family):
    """Another session, whose home is B, follows its client to the very port that B has from this one."""
    what = "another session follows, IPv%d" % family
    with Stage([PORT]) as stage:
        stage.open("s", "bulk", PORT, family, sport=20012, rate=RATE)
        open_direct(stage, family, 20013)
        stage.moved("s", "b", "--datapath", "queue")
        there = endpoint(address("b", family), PORT)
        answer = stage.daemon.migrate(endpoint(address("c", family), 20013), there, address("d", family), "--datapath", "queue")
        case.equal(answer.code, DONE, what + ": it is on D")
        stage.client.close("own")
        time.sleep(0.3)
        up = open_direct(stage, family, 20012)
        case.equal(up["server"], "D", what + ": its client's next connection is on D")
        for name in ("s", "own"):
            case.ok(stage.client.works(name), "%s: %s works" % (what, name), stage.daemon.tail)
            case.ok(stage.client.cycle(name) is not None and stage.client.works(name), "%s: and comes back" % what)
        mark = stage.client.mark()
        answer = stage.daemon.migrate(endpoint(address("c", family), 20012), there, None)
        up = stage.client.await_up("own", "B", mark, 5)
        case.ok(answer.code == DONE and bool(up), what + ": and home", lambda: str(answer))
        case.ok(stage.client.works("s") and stage.client.works("own"), what + ": both work on B")
        case.equal(len(ports_at(stage, "b", family)), 2, what + ": which sees two ports")
        stage.moved("s", "return")
        stage.client.close("own")
        stage.client.close("s")
        stage.clean(case, ": " + what, patience=25)
        stage.healthy(case)


def away(case, family):
    """A session is moved to the home of another one, which the kernel has moved elsewhere and whose client has gone."""
    what = "to the home of another session, IPv%d" % family
    with Stage([PORT, OTHER]) as stage:
        for name, port in (("s", PORT), ("t", OTHER)):
            stage.open(name, "bulk", port, family, sport=20011, rate=RATE)
        stage.moved("s", "b", "--datapath", "kernel")
        stage.client.order(do="close", id="s")
        mark = stage.client.mark()
        answer = stage.daemon.migrate(stage.who("t"), stage.home("t"), stage.home("s"), "--datapath", "queue")
        up = stage.client.await_up("t", "A", mark, 5)
        case.ok(answer.code == DONE and bool(up), what + ": it is there", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        up = stage.client.open("s", "bulk", stage.lab.home(family), PORT, sport=20011, rate=RATE)
        case.equal(up["server"], "B", what + ": the other one's client comes back to B")
        case.ok(stage.client.works("s") and stage.client.works("t"), what + ": both work")
        stage.healthy(case)


def together(case, family):
    """A drain of D moves, at the same time, the session that came to D and the client's own connection with D, of the very same port,
    to one endpoint, the home of the one: each gets a name of its own there."""
    what = "both in one drain, IPv%d" % family
    ports = range(20020, 20032)
    with Stage([PORT]) as stage:
        d, to = address("d", family), address("a", family)
        for port in ports:
            stage.open("s%d" % port, "rr", PORT, family, sport=port, think=20)
            answer, up, _ = stage.moved("s%d" % port, "d", "--datapath", "queue")
            case.ok(answer.code == DONE and bool(up), "%s: %d is on D" % (what, port), lambda: str(answer))
            stage.client.open("own%d" % port, "rr", d, PORT, sport=port, think=20)
        names = ["%s%d" % (name, port) for name in ("s", "own") for port in ports]
        case.equal([stage.client.stats()[name]["server"] for name in names], ["D"] * len(names), what + ": as are the others")
        answer = stage.daemon.ctl("drain", d, "--to", to, "--datapath", "queue", "--wait")
        case.ok(answer.code == DONE, what + ": the drain is done", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and {stage.client.stats()[name]["server"] for name in names} != {"A"}:
            time.sleep(0.1)
        case.ok([stage.client.stats()[name]["server"] for name in names] == ["A"] * len(names), what + ": all are on A",
                lambda: "%s\n%s" % (stage.client.stats(), stage.daemon.tail()))
        case.equal([name for name in names if not stage.client.works(name)], [], what + ": and work")
        seen = ports_at(stage, "a", family)
        case.ok(len(seen) == len(names) and len(set(seen)) == len(names), what + ": under as many ports", lambda: str(seen))
        stage.healthy(case)


def wide(case, datapath, family):
    """All connections of the client at once: the kernel finds source ports; user space has none to give, and says so."""
    what = "scope client, %s datapath, IPv%d" % (datapath, family)
    with Stage([PORT]) as stage:
        open_direct(stage, family, 20006)
        stage.open("s", "bulk", PORT, family, sport=20006, scope="client", rate=RATE)
        before = ruleset(stage.lab)
        answer, mark = stage.migrate("s", "b", "--datapath", datapath)
        if datapath == "queue":
            case.equal(answer.code, FAILED, what + ": the migration is refused")
            case.ok("connection of its own" in answer.err, what + ": and the sentence says why", answer.err)
            case.equal(ruleset(stage.lab), before, what + ": and the table is as it was")
            case.equal(stage.client.seen("s", "down", mark=mark), [], what + ": and so is the session")
            undisturbed(case, stage, what)
        else:
            up = stage.client.await_up("s", "B", mark, 5)
            case.ok(answer.code == DONE and bool(up), what + ": A → B is proven", lambda: str(answer))
            both(case, stage, what, family, 20006)
            onwards(case, stage, what, family, 20006, datapath)
        stage.healthy(case)


def passive(case, datapath, family):
    """The segment that is shown to the to-host must not meet the client's own connection there."""
    what = "passive, %s datapath, IPv%d" % (datapath, family)
    with Stage([PORT]) as stage:
        open_direct(stage, family, 20002)
        stage.open("s", "rr", PORT, family, sport=20002, think=5)
        answer, mark = stage.migrate("s", "b", "--passive", "--datapath", datapath)
        up = stage.client.await_up("s", "B", mark, 10)
        case.ok(answer.code == DONE and bool(up), what + ": the session is on B", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        both(case, stage, what, family, 20002)
        stage.healthy(case)


def two_homes(case, family):
    """Two sessions of one client port, with two homes, on one endpoint of B, carried by user space."""
    what = "two homes on one endpoint, IPv%d" % family
    with Stage([PORT, OTHER]) as stage:
        to = endpoint(address("b", family), PORT)
        for name, port in (("s", PORT), ("t", OTHER)):
            stage.open(name, "bulk", port, family, sport=20003, rate=RATE)
            mark = stage.client.mark()
            answer = stage.daemon.migrate(stage.who(name), stage.home(name), to, "--datapath", "queue")
            up = stage.client.await_up(name, "B", mark, 5)
            case.ok(answer.code == DONE and bool(up), "%s: %s is on B" % (what, name), lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        case.equal(len(ports_at(stage, "b", family)), 2, what + ": B sees two ports")
        for name in "st":
            case.ok(stage.client.works(name), "%s: %s works" % (what, name))
        for name in "st":
            answer, up, _ = stage.moved(name, "return")
            case.ok(answer.code == DONE and bool(up) and stage.client.works(name), "%s: %s is home" % (what, name), lambda: str(answer))
        stage.clean(case, ": " + what, patience=12)
        stage.healthy(case)


def ranges(case, datapath, family):
    """Of a range of ports one is taken that listens, and at which the client's port is free."""
    what = "a range of ports, %s datapath, IPv%d" % (datapath, family)
    b = address("b", family)
    with Stage([PORT], more_ports=[OTHER]) as stage:
        stage.open("s", "rr", PORT, family, sport=20004, think=5)

        def migrate(ports):
            mark = stage.client.mark()
            answer = stage.daemon.migrate(stage.who("s"), stage.home("s"), endpoint(b, PORT)[:-4] + ports, "--datapath", datapath)
            return answer, mark

        before = ruleset(stage.lab)
        answer, _ = migrate("7100-7103")
        case.equal(answer.code, FAILED, what + ": where no port listens, nothing is moved")
        case.ok("does not accept connections" in answer.err, what + ": and the sentence says why", answer.err)
        answer, _ = migrate("7000-7999")
        case.equal(answer.code, USAGE, what + ": a thousand ports are too many")
        answer, _ = migrate("7003-7001")
        case.equal(answer.code, USAGE, what + ": a range begins with its lower end")
        case.equal(ruleset(stage.lab), before, what + ": no refusal has changed the table")
        open_direct(stage, family, 20004)
        answer, mark = migrate("6999-7003")
        up = stage.client.await_up("s", "B", mark, 5)
        case.ok(answer.code == DONE and bool(up), what + ": the session is on B", lambda: str(answer))
        case.equal(answer["to"], endpoint(b, OTHER), what + ": on the port that is free")
        case.equal(ports_at(stage, "b", family, OTHER), [20004], what + ": and as what it is")
        answer, _ = migrate("6999-7003")
        case.equal(answer.code, FAILED, what + ": it is there already")
        stage.client.close("own")
        answer, up, _ = stage.moved("s", "return")
        case.ok(answer.code == DONE and bool(up), what + ": and home", lambda: str(answer))
        stage.healthy(case)


def stated(case, datapath, family):
    """A controller says what the segments are to become."""
    what = "a stated translation, %s datapath, IPv%d" % (datapath, family)
    client, b = address("c", family), address("b", family)
    with Stage([PORT], more_ports=[OTHER]) as stage:
        stage.open("s", "bulk", PORT, family, sport=20005, rate=RATE)

        def migrate(source, destination, *more):
            mark = stage.client.mark()
            return stage.daemon.ctl("migrate", "--client", stage.who("s"), "--from", stage.home("s"), "--translation",
                                    source + "," + destination, "--datapath", datapath, "--wait", "--json", *more), mark

        before = ruleset(stage.lab)
        foreign = "198.18.1.77" if family == 4 else "2001:db8:1::77"
        for name, source, destination in (
                ("a foreign address", endpoint(foreign, 1023), endpoint(b, OTHER)),
                ("no port", client, endpoint(b, OTHER)),
                ("the home", endpoint(client, 1023), stage.home("s")),
                ("the other family", endpoint(client, 1023), "[2001:db8:3::2]:7001" if family == 4 else "198.18.3.2:7001")):
            answer, _ = migrate(source, destination)
            case.equal(answer.code, USAGE, "%s: %s is refused" % (what, name))
            case.ok(answer.err.startswith("nfqmigctl: ") and answer.err.count("\n") == 1, "%s: in one sentence" % what, answer.err)
        open_direct(stage, family, 1022, port=OTHER)
        answer, _ = migrate(endpoint(client, 1022), endpoint(b, OTHER))
        case.equal(answer.code, FAILED, what + ": a port that is taken is refused")
        case.ok("another connection" in answer.err, what + ": and the sentence says so", answer.err)
        case.equal(ruleset(stage.lab), before, what + ": no refusal has changed the table")
        case.equal(stage.client.seen("s", "down"), [], what + ": nor the session")
        answer, mark = migrate(endpoint(client, 1023), endpoint(b, OTHER))
        up = stage.client.await_up("s", "B", mark, 5)
        case.ok(answer.code == DONE and bool(up), what + ": it is carried out", lambda: "%s\n%s" % (answer, stage.daemon.tail()))
        case.equal(ports_at(stage, "b", family, OTHER), [1022, 1023], what + ": B sees what was stated")
        case.ok(stage.client.works("s"), what + ": the session carries data")
        session = [each for each in stage.daemon.sessions() if each["host"] == endpoint(b, OTHER)]
        case.equal([each.get("sourcePort") for each in session], [1023], what + ": and is listed with it")
        case.ok(stage.client.cycle("s") is not None, what + ": the client comes back")
        case.equal(ports_at(stage, "b", family, OTHER), [1022, 1023], what + ": as what was stated")
        answer, up, _ = stage.moved("s", "d", "--datapath", datapath)
        case.ok(answer.code == DONE and bool(up), what + ": onwards, the right connection is reset", lambda: str(answer))
        case.equal(ports_at(stage, "d", family), [20005], what + ": where nothing is stated the client keeps its port")
        undisturbed(case, stage, what)
        answer, up, _ = stage.moved("s", "return")
        case.ok(answer.code == DONE and bool(up), what + ": and home", lambda: str(answer))
        stage.client.close("own")
        stage.clean(case, ": " + what, patience=12)
        stage.healthy(case)


def body(case):
    for datapath in ("kernel", "queue"):
        for family in (4, 6):
            conflict(case, datapath, family, 20001 if family == 4 else 700, own_first=True)
            if case.full or datapath == "queue":
                conflict(case, datapath, family, 20001, own_first=False)
            if case.full:
                conflict(case, datapath, family, 700, own_first=True)
                conflict(case, datapath, family, 400, own_first=False)
                passive(case, datapath, family)
        passive(case, datapath, 4)
        wide(case, datapath, 4)
        ranges(case, datapath, 4)
        stated(case, datapath, 4)
        if case.full:
            ranges(case, datapath, 6)
        stated(case, datapath, 6)
    two_homes(case, 4)
    displaced(case, 4)
    homecoming(case, 4)
    moved_too(case, "kernel", 4)
    away(case, 4)
    follower(case, 4)
    together(case, 4)
    if case.full:
        together(case, 6)
        moved_too(case, "queue", 6)
        displaced(case, 6)
        two_homes(case, 6)


if __name__ == "__main__":
    tap.main(body)
