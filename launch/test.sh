#!/usr/bin/env bash
# The tests, in an environment of their own making. Arguments go to pytest.
source "$(dirname "$0")/environment.sh" test
exec python -m pytest "$@"
