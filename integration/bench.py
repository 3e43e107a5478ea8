#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a bound session costs, beside what the kernel does without us and what other programs do.

    bench.py [--rounds N] [--seconds S] [--ways A,B] [--loads A,B] [--offload on|off] [--json FILE] [--chart FILE] [--document FILE]
    bench.py --only control [--json FILE]        migrations, bindings, the journal: control.py
    bench.py --show FILE                         the tables of an earlier run

Each way has a lab of its own; all stand at the same time. Within a round, every load goes over all ways in random order.
Figures are medians, ratios are paired within a round.

*Cost* is the CPU time of the whole machine (client, gateway, server and the kernel between them), less what foreign
processes have used, by gigabyte or operation. On a machine that others use it is the figure to trust: throughput depends
on what they leave.
"""

import argparse
import contextlib
import datetime
import json
import random
import subprocess
import sys
import time

import control
import figures
import meter
from lab import HERE
from product import missing
from ways import LOADS, WAYS


def sample(way, load, seconds, calls=False):
    """One load over one way. With `calls`, its system calls are counted instead of its costs, which that disturbs."""
    way.load("verify", 4, 1 << 20)
    counters, packets, spent = meter.tcp_counters(way.lab, "cb"), meter.queued(way.lab), way.pid and meter.cpu_time(way.pid)
    if calls:
        counter = subprocess.Popen(["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", str(way.pid)],
                                   stderr=subprocess.PIPE, text=True)
    with meter.Sample() as machine:
        report = load.run(way, seconds)
    taken, dropped = (after - before for after, before in zip(meter.queued(way.lab), packets))
    result = {"rate": report["rate"], "amount": report["amount"], "cost": machine.cpu / report["amount"],
              "others": machine.others / machine.wall, "packets": taken, "dropped": dropped,
              "p50": report.get("p50"), "p99": report.get("p99"),
              "integrity": {name: after - counters[name] for name, after in meter.tcp_counters(way.lab, "cb").items()}}
    if way.pid:
        result["daemon"] = (meter.cpu_time(way.pid) - spent) / report["amount"]
    if calls:
        counter.send_signal(2)
        words = counter.communicate()[1].split(",")
        result["calls"] = int(words[0]) / taken if words[0].isdigit() and taken else None
    if not way.alive():
        sys.exit("%s has died under %s" % (way.name, load.name))
    return result


def chosen(names, among, what):
    """Those of `among` with these names, separated by commas."""
    absent = [name for name in names.split(",") if name not in among]
    if absent:
        sys.exit("bench.py: there is no %s %s: there are %s." % (what, " or ".join(absent), ", ".join(among)))
    return [among[name] for name in names.split(",")]


def measure(options):
    ways, loads = chosen(options.ways, WAYS, "way"), chosen(options.loads, LOADS, "load")
    skipped = {way.name: way.missing() for way in ways if way.missing()}
    for name, reason in skipped.items():
        print("skipped: %s: %s" % (name, reason), file=sys.stderr)
    samples = {way.name: {load.name: [] for load in loads} for way in ways if way.name not in skipped}
    calls = {name: {} for name in samples}
    with contextlib.ExitStack() as stack:
        stage = [stack.enter_context(WAYS[name](options.offload == "on")) for name in samples]
        for way in stage:
            sample(way, LOADS["connect"], 0.2)
        # The daemon reads conntrack's events until four seconds after the client of a migration is back.
        time.sleep(6)
        for number in range(options.rounds):
            for load in loads:
                random.shuffle(stage)
                for way in stage:
                    samples[way.name][load.name].append(sample(way, load, options.seconds))
                print("round %d of %d: %s" % (number + 1, options.rounds, load.name), file=sys.stderr)
        for load in loads:
            for way in stage:
                if way.pid and not way.name == "kernel":
                    calls[way.name][load.name] = sample(way, load, options.seconds, calls=True)["calls"]
    return {"samples": samples, "calls": calls, "skipped": skipped}


def commit():
    done = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--loads", default=",".join(LOADS))
    parser.add_argument("--offload", choices=("on", "off"), default="on",
                        help="checksum and segmentation offload of all links; off is what a plain wire sees")
    parser.add_argument("--only", choices=("datapath", "control"))
    parser.add_argument("--json", help="write every sample to this file")
    parser.add_argument("--chart", help="write an SVG chart to this file")
    parser.add_argument("--document", help="put the tables into this Markdown file, between its marks")
    parser.add_argument("--show", help="measure nothing; show the figures in this file")
    control.add_options(parser)
    options = parser.parse_args()
    if options.show:
        with open(options.show) as file:
            result = json.load(file)
    elif missing():
        sys.exit(missing())
    else:
        chosen(options.parts, dict.fromkeys(control.PARTS), "part")
        result = {"machine": meter.machine(), "commit": commit(), "date": str(datetime.date.today()),
                  "seconds": options.seconds, "rounds": options.rounds, "offload": options.offload}
        if options.only != "control":
            result["datapath"] = measure(options)
        if options.only != "datapath":
            result["control"] = control.measure(options)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
    print(figures.text(result))
    if options.document:
        figures.insert(result, options.document)
    if options.chart and "datapath" in result:
        with open(options.chart, "w") as file:
            file.write(figures.chart(result))
    wrong = figures.integrity_failures(result)
    if wrong:
        sys.exit("integrity: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
