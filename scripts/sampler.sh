#!/usr/bin/env bash
# From JEM's sampler to a stable sampler, one change a row: accuracy, ECE, AUROC of log q(x), samples, diverged runs.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   half  1.0 PFLOP, 1.3 core hours at 0.2 TFLOP/s a core
# SCALE=half or smoke, SEEDS, JOBS and GPUS: see scripts/reproduce.sh. For RESULTS.md this script trained one seed of
# each row, with SEEDS=1, and this command two more seeds of the first row, the last row and cross-entropy:
#   python scripts/experiments.py run sampler --scale half --rows ladder-jem ladder-bce ladder-ce --seeds 2 3
# Run again, this script prints all of these seeds.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" sampler
