#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# What the case of the control interface's description needs, under .build and nowhere else. Without a way to get it, that
# case is skipped.
set -eu
cd "$(dirname "$0")/.."
[ ! -d .build/python/schemathesis ] || exit 0
mkdir -p .build
python3 -m pip --version >/dev/null 2>&1 || scripts/deps.sh python3-pip || true
echo "installing into .build/python: schemathesis, openapi-spec-validator"
python3 -m pip install --quiet --disable-pip-version-check --target .build/python schemathesis openapi-spec-validator \
    2>.build/python.log || echo "schemathesis cannot be installed (.build/python.log): a case will be skipped" >&2
