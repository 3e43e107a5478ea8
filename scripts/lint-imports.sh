#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Pure rooms open no socket, read no clock and roll no dice: they may import each other and nothing of the system.
set -eu
cd "$(dirname "$0")/.."
if grep -nE '^\s*(@[a-zA-Z_()]+ )*((public|package|internal|private|fileprivate) )?import (Glibc|Musl|Foundation|Dispatch|Darwin|CNetfilter|CLinuxShims|Synchronization)\b' \
    Sources/Wire/*.swift Sources/Rewriter/*.swift Sources/Ruleset/*.swift Sources/Migration/*.swift \
    Sources/Spoofer/ResetHandshake*.swift; then
    echo "A pure room imports what only the rim may." >&2
    exit 1
fi
