#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the integration cases: all of them, or those whose file names contain one of the words given.

    run.py [--full] [--verbose] [--selftest] [--treatment mark|rewrite] [WORD...]

The short versions take a few minutes; --full runs the large ones. Exit status 0 when no case failed.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time

from lab import HERE, sweep

RESULT = re.compile(r"^(not )?ok \d+ - (.*)$")


def cases(words):
    found = sorted(name for name in os.listdir(os.path.join(HERE, "cases")) if name.endswith(".py"))
    # A word of one letter is a case's letter.
    return [name for name in found if not words or any(
        name.startswith(word + "-") if len(word) == 1 else word in name for word in words)]


def run(path, full, verbose):
    """Run one case; (passed, failed, skipped, reason for skipping all or None)."""
    child = subprocess.Popen([sys.executable, path] + (["--full"] if full else []), stdout=subprocess.PIPE, text=True)
    passed = failed = skipped = 0
    reason, failing, planned = None, False, False
    try:
        for line in child.stdout:
            line = line.rstrip("\n")
            match = RESULT.match(line)
            if match:
                failing = bool(match.group(1))
                if "# SKIP" in line:
                    skipped += 1
                elif failing:
                    failed += 1
                else:
                    passed += 1
            planned = planned or line.startswith("1..")
            if line.startswith("1..0 # SKIP"):
                reason = line.partition("SKIP ")[2]
            notes = line.startswith("#") and (failing or verbose)
            if verbose or (match and (failing or "# SKIP" in line)) or notes:
                print("    " + line, flush=True)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    if child.wait() not in (0, 1) or not planned:
        failed += 1
        print("    the case ended with %d before its end" % child.returncode)
    return passed, failed, skipped, reason


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--full", action="store_true", help="the long versions")
    choice.add_argument("--quick", action="store_true", help="the short versions (the default)")
    parser.add_argument("--verbose", action="store_true", help="print every assertion and note")
    parser.add_argument("--selftest", action="store_true", help="test the lab itself first")
    parser.add_argument("--treatment", choices=("mark", "rewrite"), help="who writes the packets of datapath queue: not the default")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    if options.treatment:
        os.environ["NFQMIG_TREATMENT"] = options.treatment
    # A line at a time, whether or not a terminal reads it.
    sys.stdout.reconfigure(line_buffering=True)
    for name in sweep():
        print("swept up after a dead run: " + name)
    paths = [os.path.join(HERE, "selftest.py")] if options.selftest else []
    paths += [os.path.join(HERE, "cases", name) for name in cases(options.words)]
    if not paths:
        sys.exit("No case's name contains any of: " + " ".join(options.words))
    totals, skips, began = [0, 0, 0], [], time.monotonic()
    for path in paths:
        name = os.path.basename(path)[:-3]
        print("=== " + name.replace("-", " "))
        start = time.monotonic()
        *counts, reason = run(path, options.full, options.verbose)
        totals = [one + other for one, other in zip(totals, counts)]
        verdict = "FAILED" if counts[1] else "skipped: " + reason if reason else "passed"
        if reason:
            skips.append((name, reason))
        print("    %s: %d ok, %d not ok, %d skipped, %.1f s" % (verdict, *counts, time.monotonic() - start))
    print("%d ok, %d not ok, %d skipped in %d cases, %d of them skipped whole, %.0f s" % (
        *totals, len(paths), len(skips), time.monotonic() - began))
    for name, reason in skips:
        print("skipped %s: %s" % (name[0], reason))
    sys.exit(1 if totals[1] else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
