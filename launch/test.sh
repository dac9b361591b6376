#!/usr/bin/env bash
# The tests, in an environment of their own making: all of them, shared by the cores. Arguments go to pytest instead, such
# as a file, or `-n 2 --dist loadfile --slow`.
source "$(dirname "$0")/environment.sh" test
if [ $# = 0 ]; then
    workers=$(nproc)
    set -- -n "$((workers < 8 ? workers : 8))" --dist loadfile --no-loadscope-reorder
fi
exec python -m pytest "$@"
