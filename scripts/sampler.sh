#!/usr/bin/env bash
# From JEM's sampler to a stable one, a change a row: accuracy, ECE, AUROC of log q(x), samples, runs that diverged.
# Cost of a seed's training, shared experiments included (what was measured: scripts/reproduce.sh):
#   half  1.0 PFLOP, 1.3 core hours at 0.2 TFLOP/s a core
# SCALE=half or smoke, SEEDS, JOBS and GPUS: see scripts/reproduce.sh. One seed of each row, SEEDS=1, and
# then two more of both ends and of cross-entropy:
#   python scripts/experiments.py run sampler --scale half --rows ladder-jem ladder-bce ladder-ce --seeds 2 3
# after which this script shows them all.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" sampler
