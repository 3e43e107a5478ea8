#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# The Python program that `make bench` compares with, under .build and nowhere else. Without it the comparison is skipped.
set -eu
cd "$(dirname "$0")/.."
[ ! -d .build/python-peer/netfilterqueue ] || exit 0
echo "installing into .build/python-peer: NetfilterQueue"
python3 -m pip install --quiet --disable-pip-version-check --no-deps --target .build/python-peer NetfilterQueue \
    2>.build/python-peer.log || echo "NetfilterQueue cannot be installed (.build/python-peer.log): skipped" >&2
