#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""With 3 % loss at each end of each link migrations may be slow (a lost SYN waits a second), but none fails. Full: 300
migrations, else 20."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import tap
from matrix import Matrix
from stage import Stage

FIRST_PORT, FLOOR_PORT = 7000, 7100
PERCENT = 3


def body(case):
    chosen = [dict(mode=mode, port=port, family=4, datapath=datapath, timestamps=True, firewalls=firewalls)
              for mode, port, datapath, firewalls in (
                  ("rr", "same/connection", "kernel", False), ("rr", "new/client", "queue", False),
                  ("idle", "new/client", "kernel", True), ("idle", "same/client", "queue", False),
                  ("bulk", "same/connection", "kernel", False), ("bulk", "new/client", "queue", True))]
    hops = ("b", "a", "d", "return") + ("b", "d") * 22 + ("b", "return") if case.full else ("b", "d", "a", "b")
    if not case.full:
        chosen = chosen[:5]
    ports = list(range(FIRST_PORT, FIRST_PORT + len(chosen)))
    # Time enough for a handshake some of whose segments are lost, several times over.
    with Stage(ports, lab={"loss": PERCENT}, more_ports=[FLOOR_PORT], reset_timeout=20000, guard_client=25,
               reconnect_timeout=20, check_timeout=10000) as stage:
        matrix = Matrix(case, stage, patience=60, floors=3, floor_port=FLOOR_PORT)
        matrix.run(list(zip(ports, chosen)), hops)
        matrix.report()
        wanted, failures = len(chosen) * len(hops), matrix.failures()
        case.ok(not failures, "all %d migrations are done and proven, no client hangs or is refused" % wanted,
                lambda: "%d failures\n%s" % (len(failures), "\n".join(failures[:20])))
        stage.lab.set_loss(0)
        for name in list(stage.sessions):
            stage.daemon.migrate(stage.who(name), stage.home(name), None)
        stage.clean(case, patience=30)
        stage.healthy(case)


if __name__ == "__main__":
    tap.main(body)
