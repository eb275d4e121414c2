#!/usr/bin/env bash
# Sets up what is needed and runs all tests; arguments go to pytest, as in `bash scripts/test.sh -k energy`.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
cd "$hdge_root"
"$PYTHON" -m pytest "$@"
