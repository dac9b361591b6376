#!/usr/bin/env bash
# Phases 0 to 5 on the embedded Gemma 3 270M and the embedded exam. Run again, it resumes where it stopped.
source "$(dirname "$0")/environment.sh" embedded
exec medkor run --config configs/quickstart.py "$@"
