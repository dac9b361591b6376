#!/usr/bin/env bash
# What is checked without running anything: ruff's rules, its format, and types. Each is shown, whatever the others say.
source "$(dirname "$0")/environment.sh" check
failed=0
ruff check . || failed=1
ruff format --check . || failed=1
mypy || failed=1
exit $failed
