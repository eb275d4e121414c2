#!/usr/bin/env bash
# Says in minutes how this code runs on a GPU: its tests there, the speed of a step, where the time goes, and a short
# training run with samples. Installs nothing and needs no network: Python, PyTorch and the rest have to be there.
#
#     bash scripts/gpu.sh OUT                  # on a machine with a GPU: 9 minutes, files in OUT
#     bash scripts/gpu.sh OUT --rehearse       # the same parts on a CPU, small networks and digits, 3 minutes
#     bash scripts/gpu.sh OUT --resume OLD --parts training    # train on from what an earlier call left in OLD
#     python scripts/bench.py collect OUT      # then: tables and pictures in benchmarks/gpu/
#
# CIFAR-10 is read from --data_root (default: $HDGE_DATA_ROOT, else ./datasets), such as the part of it that
# `python benchmarks/subset.py FOLDER` makes small enough to travel with the code.
set -euo pipefail

exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../benchmarks/gpu.py" "$@"
