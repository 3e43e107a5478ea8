# SPDX-License-Identifier: GPL-3.0-or-later
"""The test anything protocol, as much of it as the cases need."""

import argparse
import difflib
import os
import pprint
import sys
import traceback

import product
from lab import LabError


class Skip(Exception):
    """This case cannot be run here; the text says why."""


class Case:
    """Counts and prints assertions. `full` is the long version of a case."""

    def __init__(self, full):
        self.full = full
        self.count = self.failures = 0

    def ok(self, holds, claim, evidence=""):
        """One assertion. `evidence` (text, or a function that gives it) is printed when it does not hold."""
        self.count += 1
        self.failures += not holds
        print("%sok %d - %s" % ("" if holds else "not ", self.count, claim.replace("#", "")))
        if not holds and evidence:
            self.note(evidence() if callable(evidence) else evidence)
        sys.stdout.flush()
        return bool(holds)

    def equal(self, found, wanted, claim):
        return self.ok(found == wanted, claim, lambda: difference(found, wanted))

    def skip(self, claim, reason):
        self.count += 1
        print("ok %d - %s # SKIP %s" % (self.count, claim, reason), flush=True)

    def note(self, text):
        for line in str(text).splitlines():
            print("#   " + line)
        sys.stdout.flush()


def difference(found, wanted):
    """Both values, or only the lines in which long ones differ."""
    if len(repr(found)) + len(repr(wanted)) < 500:
        return "found  %r\nwanted %r" % (found, wanted)
    lines = [pprint.pformat(value, width=160).replace("\\n", "\n").splitlines() for value in (wanted, found)]
    return "\n".join(line for line in difflib.unified_diff(*lines, "wanted", "found", n=0, lineterm=""))


def main(body, needs_product=True):
    """Run a case's body with a Case and end the process: 0 when every assertion held."""
    parser = argparse.ArgumentParser(description=body.__doc__ or sys.modules["__main__"].__doc__)
    parser.add_argument("--full", action="store_true", help="the long version")
    case = Case(parser.parse_args().full)
    try:
        if os.geteuid() != 0:
            raise Skip("needs root: it makes network namespaces")
        if needs_product and product.missing():
            raise Skip(product.missing())
        body(case)
    except Skip as reason:
        if not case.count:
            print("1..0 # SKIP %s" % reason)
            sys.exit(0)
        case.skip("the rest", reason)
    except LabError as error:
        case.ok(False, "the lab works", error)
    except Exception:
        case.ok(False, "the case runs to its end", traceback.format_exc)
    print("1..%d" % case.count)
    sys.exit(1 if case.failures else 0)
