# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel holds: our table, other people's tables, conntrack, sockets, queues, processes."""

import json
import os
import re

TABLE = "nfqmigd"


def ruleset_of_others(lab, host="g"):
    """`nft list ruleset` without our table, as text, counters at zero: octet for octet the same when untouched."""
    text = lab.run(host, "nft", "list", "ruleset").stdout
    kept, ours = [], False
    for line in text.splitlines():
        if line.startswith("table "):
            ours = line.split()[2] == TABLE
        if not ours:
            kept.append(re.sub(r"counter packets \d+ bytes \d+", "counter packets 0 bytes 0", line))
    return "\n".join(kept)


def ruleset(lab, host="g"):
    """All of `nft list ruleset`, counters at zero and without what runs by itself (the rest of a time-out)."""
    text = lab.run(host, "nft", "list", "ruleset").stdout
    text = re.sub(r"counter packets \d+ bytes \d+", "counter packets 0 bytes 0", text)
    return re.sub(r" expires \w+", "", text)


def table_exists(lab):
    return lab.run("g", "nft", "list", "table", "inet", TABLE, check=False).returncode == 0


def table_skeleton(lab):
    """Our table with handles, without elements: the same when nobody re-created anything."""
    text = lab.run("g", "nft", "-a", "-t", "list", "table", "inet", TABLE).stdout
    return re.sub(r"counter packets \d+ bytes \d+", "counter", text)


def elements(lab):
    """The elements of our sets and maps: (set's name, element as JSON text, seconds left or None)."""
    listed = json.loads(lab.run("g", "nft", "-j", "list", "table", "inet", TABLE).stdout)["nftables"]
    found = []
    for item in listed:
        body = item.get("set") or item.get("map")
        for element in (body or {}).get("elem", []):
            key = element[0] if isinstance(element, list) else element
            inner = key.get("elem", {}) if isinstance(key, dict) else {}
            found.append((body["name"], json.dumps(element), inner.get("expires")))
    return found


class Entry:
    """A conntrack entry of a TCP connection: both tuples as (source, sport, destination, dport)."""

    PAIR = re.compile(r"(src|dst|sport|dport)=(\S+)")

    def __init__(self, line):
        self.line = line
        self.state = line.split()[5]
        values = [value for _, value in self.PAIR.findall(line)]
        tuples = []
        for index in (0, 4):
            source, destination, sport, dport = values[index:index + 4]
            tuples.append((source, int(sport), destination, int(dport)))
        self.original, self.reply = tuples


def conntrack(lab, host="g"):
    """The TCP entries of a namespace's conntrack."""
    entries = []
    for family in ("ipv4", "ipv6"):
        text = lab.run(host, "conntrack", "-L", "-p", "tcp", "-f", family, "-o", "extended", check=False).stdout
        entries += [Entry(line) for line in text.splitlines() if " src=" in line]
    return entries


def sockets(lab, host):
    """The TCP sockets of a host that are not listening: (state, local address, port, peer address, port)."""
    found = []
    for line in lab.run(host, "ss", "-tanH").stdout.splitlines():
        state, _, _, local, peer = line.split()[:5]
        if state != "LISTEN":
            found.append((state,) + split_endpoint(local) + split_endpoint(peer))
    return found


def split_endpoint(text):
    host, port = text.rsplit(":", 1)
    host = host.strip("[]").split("%")[0]
    return host.removeprefix("::ffff:"), int(port) if port.isdigit() else 0


def stale_entries(lab, ports=None):
    """ESTABLISHED conntrack entries of the gateway that no socket of the client and of a host stands behind, to any port
    or to these."""
    clients = {(s[1], s[2]) + s[3:5] for s in sockets(lab, "c") if s[0] == "ESTAB"}
    servers = {(s[1], s[2]) + s[3:5] for host in "abd" for s in sockets(lab, host) if s[0] == "ESTAB"}
    return [entry.line for entry in conntrack(lab) if entry.state == "ESTABLISHED" and (
        ports is None or entry.original[3] in ports) and not (
        entry.original in clients and entry.reply in servers)]


def queue_packets(lab):
    """Packets that the kernel has given to user space so far: the sum of nfnetlink_queue's id sequences."""
    text = lab.run("g", "cat", "/proc/net/netfilter/nfnetlink_queue", check=False).stdout
    # Queue number, port id, waiting, copy mode, copy range, queue dropped, user dropped, id sequence, 1.
    return sum(int(line.split()[7]) for line in text.splitlines())


def queue_drops(lab):
    text = lab.run("g", "cat", "/proc/net/netfilter/nfnetlink_queue", check=False).stdout
    return sum(int(line.split()[5]) + int(line.split()[6]) for line in text.splitlines())


def descriptors(pid):
    """What a process has open, by kind: a leak of sockets shows here."""
    kinds = {}
    for name in os.listdir("/proc/%d/fd" % pid):
        try:
            target = os.readlink("/proc/%d/fd/%s" % (pid, name))
        except OSError:
            continue
        kind = re.sub(r"\d+", "N", target)
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def children(pid):
    """The processes that a process has started, zombies too."""
    found = []
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/children" % (pid, task)) as file:
            found += [int(child) for child in file.read().split()]
    return found


def resident_kibibytes(pid):
    with open("/proc/%d/status" % pid) as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))
