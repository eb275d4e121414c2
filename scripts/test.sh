#!/usr/bin/env bash
# Set up Python and run all tests that are not marked `slow`, in two processes. Arguments go to pytest, as in
# `bash scripts/test.sh -k energy`; `-m "slow or not slow"` runs all tests, `-n 0` uses one process.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
cd "$hdge_root"
"$PYTHON" -m pytest -n 2 --dist loadfile -m "not slow" "$@"
