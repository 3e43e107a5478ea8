# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cases about many connections share: a crowd in a lab, and figures in words."""

import os
import sys
import time

from lab import HERE, LabError
from traffic import Lines

ADDRESSES = ["198.18.1.%d" % number for number in range(101, 121)]


class CrowdOf(Lines):
    """So many connections of the lab's client to a port of home; `busy` of them ask all the time."""

    def __init__(self, lab, count, port, busy=50, first_port=20000):
        lab.run("c", "ip", "-batch", "-", stdin="\n".join(
            "address replace %s/24 dev eth0" % each for each in ADDRESSES))
        super().__init__(lab, "c", [sys.executable, os.path.join(HERE, "crowd.py"), lab.home(), str(port), str(count),
                                    str(first_port), str(busy)] + ADDRESSES)
        self.count = count

    def ask(self, do, patience=20):
        mark = self.mark()
        self.process.stdin.write(b'{"do": "%s"}\n' % do.encode())
        self.process.stdin.flush()
        event = self.find(lambda each: each["event"] == do, patience, mark)
        if not event:
            raise LabError("the crowd does not answer")
        return event

    def state(self):
        return self.ask("state")

    def history(self):
        """Everything since the last time; what was sent before the question is in the next answer."""
        return self.ask("history")

    def settled(self, patience=30):
        """The state once every connection is up, or after so many seconds."""
        deadline = time.monotonic() + patience
        while True:
            state = self.state()
            if not state["waiting"] or time.monotonic() > deadline:
                return state
            time.sleep(0.1)

    def close(self):
        self.process.stdin.write(b'{"do": "close"}\n')
        self.process.stdin.flush()


BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def histogram(values, unit="ms"):
    """Lines: how many values there are up to each bound, with a bar, and the percentiles."""
    if not values:
        return "no values"
    values = sorted(values)
    lines, low = [], 0
    for bound in BOUNDS + (float("inf"),):
        count = sum(low < value <= bound for value in values)
        if count:
            name = "> %g" % low if bound == float("inf") else "≤ %g" % bound
            lines.append("%8s %s %6d %s" % (name, unit, count, "#" * max(1, 50 * count // len(values))))
        low = bound
    at = lambda share: values[min(len(values) - 1, int(share * len(values)))]
    lines.append("%d values: median %.1f, 90 %% %.1f, 99 %% %.1f, 99.9 %% %.1f, longest %.1f %s" % (
        len(values), at(0.5), at(0.9), at(0.99), at(0.999), values[-1], unit))
    return "\n".join(lines)
