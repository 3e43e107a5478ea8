#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations A→B→A→D→home… over every combination of load, source port, scope, family, datapath, time stamps and
firewalls: no client hangs, none is refused, every reset is proven, and nothing is left. Full: each of the 144
combinations seven times; else a pairwise choice of them, four times each."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from matrix import ROUND, SHORT_ROUND, Matrix, Resources, combinations, pairwise
from stage import Stage

FIRST_PORT = 7000


def body(case):
    chosen, hops = (combinations(), ROUND) if case.full else (pairwise(15), SHORT_ROUND)
    ports = list(range(FIRST_PORT, FIRST_PORT + len(chosen)))
    with Stage(ports) as stage:
        resources = Resources(stage.daemon)
        matrix = Matrix(case, stage)
        rows = matrix.run(list(zip(ports, chosen)), hops)
        wanted = len(chosen) * len(hops)
        matrix.report()
        failures = matrix.failures()
        case.ok(not failures, "all %d migrations are done and proven, no client hangs or is refused" % wanted,
                lambda: "%d failures\n%s" % (len(failures), "\n".join(failures[:20])))
        case.equal(sum(len(row.times) for row in rows), wanted, "each of them was measured")
        stage.clean(case)
        resources.check(case)
        sessions = stage.daemon.sessions()
        case.ok(sessions == [], "the daemon lists no session any more", lambda: str(sessions))
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
