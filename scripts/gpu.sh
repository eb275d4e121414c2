#!/usr/bin/env bash
# Check and time this code on a GPU within minutes: tests, the speed of a training step, a profile of its time, and a
# short training run with samples. Nothing is installed or downloaded: all packages must be installed already.
#
#     bash scripts/gpu.sh OUT                  # on a machine with a GPU: 9 minutes, files in OUT
#     bash scripts/gpu.sh OUT --rehearse       # the same parts on a CPU, small networks and digits, 3 minutes
#     bash scripts/gpu.sh OLD --calls 2        # the same, with a training that is planned for two calls
#     bash scripts/gpu.sh OUT --resume OLD --parts training    # the second of them: continue the training run in OLD
#     python scripts/bench.py collect OUT      # afterwards: tables and pictures in benchmarks/gpu/
#
# CIFAR-10 is read from --data_root (default: $HDGE_DATA_ROOT, else ./datasets). `python benchmarks/subset.py FOLDER`
# writes a part of CIFAR-10 that is small enough to be copied with the code.
set -euo pipefail

exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../benchmarks/gpu.py" "$@"
