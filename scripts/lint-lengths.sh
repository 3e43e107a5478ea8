#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# A file that has grown past what one reads in a sitting holds two things.
set -eu
cd "$(dirname "$0")/.."
find Sources Tests integration \( -name '*.swift' -o -name '*.py' \) -size +1k -exec wc -l {} + |
    awk '$2 != "total" && $1 > 450 { print $2 ": " $1 " lines; split it"; bad = 1 } END { exit bad }' >&2
