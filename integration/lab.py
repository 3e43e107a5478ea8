#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A laboratory of network namespaces, made and taken down by one process.

                      198.18.1.0/24            198.18.2.0/24
    client C  .2 ------------- .1  gateway G  .1 ------------- .2  host A (home)
    2001:db8:1::2                     |   |   198.18.3.0/24
                                      |   +------------------- .2  host B
                                      |       198.18.4.0/24
                                      +----------------------- .2  host D

IPv6 is 2001:db8:N::/64 with the same N and the same last digit. `hops` puts a plain router into a branch (its far
side is 198.18.(N+10).0/24), so that ICMP errors come from a third party and cross the gateway.

Names carry the pid of the process that made them: several labs run side by side, and `sweep` finds what a process
that was killed has left. Everything is ended by process id.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
NUMBER = {"c": 1, "a": 2, "b": 3, "d": 4}
HOSTS = ("a", "b", "d")
VIP = {4: "198.18.10.10", 6: "2001:db8:a0::10"}
PREFIX = "nfqmig"
NAME = re.compile(r"^%s-(\d+)-\d+-(?:[cgabd]|r[cabd])$" % PREFIX)


class LabError(Exception):
    """Something of the lab itself does not work; nothing is said about the product."""


def run(argv, check=True, stdin=None, timeout=60):
    """Run a command to its end; its CompletedProcess with text. LabError with its stderr when `check` and it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise LabError("%s: exit %d: %s" % (" ".join(argv), done.returncode, done.stderr.strip()))
    return done


def address(host, family=4, step=2):
    """The address of a host of the lab; `step` 1 is the gateway's address on that host's link."""
    number = NUMBER[host]
    return "198.18.%d.%d" % (number, step) if family == 4 else "2001:db8:%d::%d" % (number, step)


def endpoint(ip, port):
    """Address and port as the product's command line writes them."""
    return "[%s]:%d" % (ip, port) if ":" in ip else "%s:%d" % (ip, port)


GATEWAY_FIREWALL = """
table inet site_firewall {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter drop
        ct state established,related accept
        tcp flags & (fin | syn | rst | ack) == syn ct state new accept
        icmp type { echo-request } accept
        icmpv6 type { echo-request } accept
    }
    chain input {
        type filter hook input priority filter; policy accept;
        ct state invalid counter drop
    }
    chain output {
        type filter hook output priority filter; policy accept;
        ct state invalid counter drop
    }
}
"""

HOST_FIREWALL = """
table inet host_firewall {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        meta l4proto { icmp, icmpv6 } accept
        ct state invalid counter drop
        ct state established,related accept
        tcp flags & (fin | syn | rst | ack) == syn ct state new accept
    }
    chain output {
        type filter hook output priority filter; policy accept;
        ct state invalid counter drop
    }
}
"""

SITE_NAT = """
table inet site_nat {
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr %s dnat ip to %s
        ip6 daddr %s dnat ip6 to %s
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 198.18.1.0/24 masquerade
        ip6 saddr 2001:db8:1::/64 masquerade
    }
}
"""


class Lab:
    """The namespaces, their links and firewalls, and every process started in them. Use it with `with`."""

    made = 0

    def __init__(self, offloads=False, firewall=True, host_firewalls=False, timestamps=True, loss=0, vip=False,
                 hops=()):
        Lab.made += 1
        self.prefix = "%s-%d-%d" % (PREFIX, os.getpid(), Lab.made)
        self.offloads, self.firewall, self.vip, self.hops = offloads, firewall, vip, tuple(hops)
        self.wanted = {"host_firewalls": host_firewalls, "timestamps": timestamps, "loss": loss}
        self.processes = []
        self.directory = None
        self.handlers = {}

    # Names and places.

    def namespace(self, host):
        return "%s-%s" % (self.prefix, host)

    def inside(self, host, argv):
        """The argument vector that runs `argv` in a host's network namespace."""
        return ["nsenter", "--net=/run/netns/" + self.namespace(host)] + list(argv)

    def run(self, host, *argv, check=True, stdin=None, timeout=60):
        return run(self.inside(host, argv), check, stdin, timeout)

    def nft(self, host, script):
        self.run(host, "nft", "-f", "-", stdin=script)

    def home(self, family=4):
        """The address that clients of the lab connect to: host A's, or the virtual one that somebody's DNAT serves."""
        return VIP[family] if self.vip else address("a", family)

    def path(self, name):
        """A file in this lab's own directory, which goes when the lab goes."""
        return os.path.join(self.directory, name)

    # Processes.

    def spawn(self, host, argv, **options):
        """Start a process in a namespace. It dies with this process, whatever kills this process."""
        child = subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + self.inside(host, argv), **options)
        self.processes.append(child)
        return child

    def stop(self, child, signals=(signal.SIGTERM, signal.SIGKILL), patience=3):
        """End a process of ours and wait for its end; its return code."""
        for number in signals:
            if child.poll() is not None:
                break
            child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience)
        if child in self.processes:
            self.processes.remove(child)
        return child.wait()

    # Coming and going.

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.handlers[number] = signal.signal(number, self._leave)
        try:
            self.directory = tempfile.mkdtemp(prefix=self.prefix + "-")
            self._build()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    @staticmethod
    def _leave(number, frame):
        sys.exit(128 + number)

    def __exit__(self, *_):
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)
        for child in list(self.processes):
            if child.poll() is None:
                child.terminate()
        for child in list(self.processes):
            self.stop(child)
        for host in self._all():
            remove_namespace(self.namespace(host))
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}
        return False

    def _all(self):
        return ["g"] + list(NUMBER) + ["r" + host for host in self.hops]

    def _build(self):
        for host in self._all():
            run(["ip", "netns", "add", self.namespace(host)])
            # Duplicate address detection would make the first seconds of IPv6 silent.
            self.sysctl(host, "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                        "net.ipv6.conf.default.dad_transmits=0", "net.ipv6.conf.all.keep_addr_on_down=1")
            self.run(host, "ip", "link", "set", "lo", "up")
            if host not in NUMBER:
                self.sysctl(host, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for host, number in NUMBER.items():
            self._branch(host, number)
        if self.firewall:
            self.nft("g", GATEWAY_FIREWALL)
        if self.vip:
            self.nft("g", SITE_NAT % (VIP[4], address("a"), VIP[6], address("a", 6)))
        self.set_timestamps(self.wanted["timestamps"])
        self.set_host_firewalls(self.wanted["host_firewalls"])
        self._warm_up()
        self.set_loss(self.wanted["loss"])

    def _branch(self, host, number):
        if host not in self.hops:
            self._link("g", "to-" + host, host, "eth0", number)
        else:
            hop = "r" + host
            self._link("g", "to-" + host, hop, "up0", number + 10)
            self._link(hop, "down0", host, "eth0", number)
            self._routes(hop, "up0", number + 10)
            self.run("g", "ip", "route", "add", "198.18.%d.0/24" % number, "via", "198.18.%d.2" % (number + 10))
            self.run("g", "ip", "-6", "route", "add", "2001:db8:%x::/64" % number, "via",
                     "2001:db8:%x::2" % (number + 10))
        self._routes(host, "eth0", number)

    def _link(self, near, near_device, far, far_device, number):
        self.run(near, "ip", "link", "add", near_device, "type", "veth", "peer", "name", far_device,
                 "netns", self.namespace(far))
        for host, device, last in ((near, near_device, 1), (far, far_device, 2)):
            self.run(host, "ip", "-batch", "-", stdin="\n".join((
                "address add 198.18.%d.%d/24 dev %s" % (number, last, device),
                "address add 2001:db8:%x::%d/64 dev %s nodad" % (number, last, device),
                "link set %s up" % device)))
            if not self.offloads:
                self.run(host, "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off", "tx", "off",
                         "rx", "off")

    def _routes(self, host, device, number):
        self.run(host, "ip", "route", "replace", "default", "via", "198.18.%d.1" % number, "dev", device)
        self.run(host, "ip", "-6", "route", "replace", "default", "via", "2001:db8:%x::1" % number, "dev", device)

    def _warm_up(self):
        """Ping once each way, so that the first measured packet does not wait for a neighbour's answer."""
        for family in (4, 6):
            for host in HOSTS:
                pinged = self.run("c", "ping", "-%d" % family, "-c", "1", "-W", "2", "-q", address(host, family),
                                  check=False)
                if pinged.returncode:
                    raise LabError("%s does not answer the client's ping:\n%s" % (address(host, family), pinged.stdout))

    # Switches, usable while the lab runs.

    def sysctl(self, host, *settings):
        self.run(host, "sysctl", "-q", "-w", *settings)

    def set_timestamps(self, on):
        for host in NUMBER:
            self.sysctl(host, "net.ipv4.tcp_timestamps=%d" % bool(on))

    def set_host_firewalls(self, on, hosts=tuple(NUMBER)):
        """Stateful firewalls of the hosts' and the client's own (input: invalid dropped, only SYNs may be new)."""
        for host in hosts:
            self.run(host, "nft", "delete", "table", "inet", "host_firewall", check=False)
            if on:
                self.nft(host, HOST_FIREWALL)

    def set_loss(self, percent):
        """Lose so many per cent of the TCP segments and ICMPv4 messages at each end of each link.

        They are dropped where they come in: a drop on the way out would be reported to the sending TCP, which then
        knows better than a loss on the wire lets it know.
        """
        for host in self._all():
            self.run(host, "nft", "delete", "table", "netdev", "loss", check=False)
            if percent:
                chains = "".join(
                    "chain in%d {\n type filter hook ingress device \"%s\" priority -500;\n "
                    "meta l4proto { tcp, icmp } numgen random mod 100 < %d counter drop\n}\n" % (index, device, percent)
                    for index, device in enumerate(self.devices(host)))
                self.nft(host, "table netdev loss {\n%s}\n" % chains)

    def devices(self, host):
        links = json.loads(self.run(host, "ip", "-j", "link", "show").stdout)
        return [link["ifname"] for link in links if link["ifname"] != "lo"]

    def set_link(self, host, up):
        """Pull or plug a host's cable. Plugging restores the routes that the kernel forgot."""
        self.run(host, "ip", "link", "set", "eth0", "up" if up else "down")
        if up:
            self._routes(host, "eth0", NUMBER[host])

    def set_mtu(self, host, device, octets):
        self.run(host, "ip", "link", "set", device, "mtu", str(octets))


def remove_namespace(name):
    """End what still runs in a namespace, by process id, and remove it."""
    if not os.path.exists("/run/netns/" + name):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = run(["ip", "netns", "pids", name], check=False).stdout.split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid), number)
        if not pids:
            break
        time.sleep(0.2)
    run(["ip", "netns", "del", name], check=False)


def sweep():
    """Remove the namespaces and directories of lab processes that are no more; the names removed."""
    removed = []
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else []:
        match = NAME.match(name)
        if match and not os.path.exists("/proc/" + match.group(1)):
            remove_namespace(name)
            removed.append(name)
    for name in os.listdir(tempfile.gettempdir()):
        match = re.match(r"^%s-(\d+)-\d+-" % PREFIX, name)
        if match and not os.path.exists("/proc/" + match.group(1)):
            shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)
            removed.append(name)
    return removed


if __name__ == "__main__":
    if sys.argv[1:] == ["sweep"]:
        for swept in sweep():
            print("removed", swept)
    elif sys.argv[1:] in (["up"], ["up", "--vip"]):
        with Lab(vip="--vip" in sys.argv) as lab:
            print("The lab is up until this process ends. Shells: nsenter --net=/run/netns/%s-{c,g,a,b,d}" % lab.prefix)
            signal.pause()
    else:
        sys.exit("usage: lab.py sweep | up [--vip]")
