#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bound session costs, beside what the kernel does without us.

    bench.py [--rounds N] [--seconds S] [--json FILE]

Ways, in random order within each round, all in one lab and on the same path client - gateway - B:

    forward     the client talks to B itself
    dnat        somebody's own nftables DNAT
    kernel      a session bound by nfqmigd, datapath kernel
    queue       a session bound by nfqmigd, datapath queue

For each: the throughput of one TCP stream (iperf3) and the machine's busy CPU time per gigabyte. Medians, and ratios to
`dnat` paired within a round. Offloads are on, as on a host. The CPU figure is the steadier one on a busy machine.
"""

import argparse
import json
import random
import statistics
import sys
import time

from lab import Lab, LabError, address, endpoint
from product import Daemon, missing
from traffic import Client, Servers

PORTS = {"forward": 5201, "dnat": 5202, "kernel": 5203, "queue": 5204}
DNAT = """table ip bench_nat {
    chain prerouting { type nat hook prerouting priority dstnat; ip daddr %s tcp dport %d dnat to %s; }
}"""


def busy():
    """Seconds of CPU time that the machine has spent on anything but idling and waiting."""
    with open("/proc/stat") as file:
        fields = [int(word) for word in file.readline().split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / 100


def bind(lab, daemon, client, way):
    """Bind the client's use of A's port to B, by moving a live session there and letting it go."""
    name = "bind-" + way
    client.open(name, "idle", address("a"), PORTS[way])
    answer = daemon.migrate(address("c"), endpoint(address("a"), PORTS[way]), address("b"), "--datapath", way)
    if answer.code:
        raise LabError("cannot bind %s: %s" % (way, answer))
    client.close(name)


def sample(lab, target, port, seconds):
    before = busy()
    done = lab.run("c", "iperf3", "--json", "-c", target, "-p", str(port), "-t", str(seconds), check=False,
                   timeout=seconds + 30)
    spent = busy() - before
    report = json.loads(done.stdout)
    if "error" in report:
        raise LabError("iperf3: " + report["error"])
    octets = report["end"]["sum_received"]["bytes"]
    return {"gigabits": report["end"]["sum_received"]["bits_per_second"] / 1e9, "cpu": spent / (octets / 1e9)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--json", help="write every sample to this file")
    options = parser.parse_args()
    if missing():
        sys.exit(missing())
    samples = {way: [] for way in PORTS}
    with Lab(offloads=True) as lab:
        daemon = Daemon(lab).start()
        servers = Servers(lab, [PORTS["kernel"], PORTS["queue"]], hosts=("a", "b"))
        client = Client(lab)
        for way in ("kernel", "queue"):
            bind(lab, daemon, client, way)
        lab.stop(servers.each["b"].process)
        lab.nft("g", DNAT % (address("a"), PORTS["dnat"], address("b")))
        for port in PORTS.values():
            lab.spawn("b", ["iperf3", "-s", "-p", str(port)], stdout=-3, stderr=-3)
        time.sleep(0.5)
        for number in range(options.rounds):
            order = list(PORTS)
            random.shuffle(order)
            for way in order:
                target = address("b") if way == "forward" else address("a")
                samples[way].append(sample(lab, target, PORTS[way], options.seconds))
            print("round %d of %d" % (number + 1, options.rounds), file=sys.stderr)
        queues = daemon.counters()
    print("%-8s %12s %14s %18s %14s" % ("way", "Gb/s", "CPU s/GB", "throughput / dnat", "CPU / dnat"))
    for way, taken in samples.items():
        paired = list(zip(taken, samples["dnat"]))
        print("%-8s %12.2f %14.3f %18.2f %14.2f" % (
            way, statistics.median(each["gigabits"] for each in taken), statistics.median(each["cpu"] for each in taken),
            statistics.median(a["gigabits"] / b["gigabits"] for a, b in paired),
            statistics.median(a["cpu"] / b["cpu"] for a, b in paired)))
    print("packets through the queues: %d" % sum(queue["packets"] for queue in queues))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"seconds": options.seconds, "samples": samples}, file, indent=1)


if __name__ == "__main__":
    main()
