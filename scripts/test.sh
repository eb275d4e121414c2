#!/usr/bin/env bash
# Sets up what is needed and runs the tests but for those marked `slow`, in two processes; arguments go to pytest, as in
# `bash scripts/test.sh -k energy`. `-m "slow or not slow"` runs all of them, `-n 0` in one process.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
cd "$hdge_root"
"$PYTHON" -m pytest -n 2 --dist loadfile -m "not slow" "$@"
