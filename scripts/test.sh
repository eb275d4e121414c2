#!/usr/bin/env bash
# Sets up what is needed and runs the tests but for those marked `slow`; arguments go to pytest, as in
# `bash scripts/test.sh -k energy`. `bash scripts/test.sh -m "slow or not slow"` runs all of them.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
cd "$hdge_root"
"$PYTHON" -m pytest -m "not slow" "$@"
