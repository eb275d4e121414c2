#!/usr/bin/env bash
# Sourced by the scripts of the tables and figures, with the name of a table or figure, or `all`:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table1_ood
#
# SCALE  paper (the papers' setting, for GPUs), small (small networks on real CIFAR, for two CPU cores),
#        half (small networks on CIFAR at 16 x 16 pixels for twice the epochs, SGLD from scratch; only some rows) or
#        smoke (a few steps on scikit-learn's digits, to check that everything runs); without SCALE a script prints the
#        cost of each scale on this machine, and runs smoke
#        (small trains in bf16: a CPU without hardware for it, AVX-512 BF16 or AMX, takes many times as long)
# SEEDS  one run of each row per seed, as in SEEDS="1 2 3" (default: 1)
# GPUS   GPUs that the programs use in turn, as in GPUS="0 1 2 3"; counted from 0 in
#        CUDA_VISIBLE_DEVICES where that is set, as by a scheduler
# JOBS   programs that run at a time (default: one for each of GPUS, else 1)
# ROOT   the run folders are in $ROOT/$SCALE (default: save/tables); a relative path starts at the repository's folder
#
# smoke: all tables and figures within 5 minutes on a 2-core AMD EPYC with JOBS=2. RESULTS.md has the hours of the runs
# at small and half; paper has not been run.
#
# A script may be run again at any time: it skips finished runs and answers, and resumes interrupted runs.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" base
cd "$hdge_root"

if [ -z "${SCALE:-}" ]; then
    SCALE=smoke
    echo "SCALE is not set. For each of SEEDS, on this machine:"
    "$PYTHON" scripts/experiments.py cost "$@"
    echo "Now SCALE=smoke: does everything run?"
fi
ROOT=${ROOT:-save/tables}
options=(--scale "$SCALE" --root "$ROOT")
# shellcheck disable=SC2206  # a list of numbers is several words
runs=(--seeds ${SEEDS:-1} ${JOBS:+--jobs "$JOBS"} ${GPUS:+--gpus $GPUS})
status=0
"$PYTHON" scripts/experiments.py run "$@" "${options[@]}" "${runs[@]}" || status=$?
[ "$status" -ne 2 ] || exit 2      # a mistake: nothing was run
[ "$status" -ne 130 ] || exit 130  # Ctrl-C

# Show the paper's numbers beside those of all runs so far, even if some jobs failed.
if compgen -G "$ROOT/$SCALE/*-s[0-9]*/variant.json" > /dev/null; then
    "$PYTHON" scripts/tables.py collect --root "$ROOT" --scale "$SCALE" --results "$ROOT/results"
    "$PYTHON" scripts/tables.py write --results "$ROOT/results" --output "$ROOT/results"
fi
for name in "$@"; do
    if [ -f "$ROOT/results/$name-$SCALE.md" ]; then
        echo
        cat "$ROOT/results/$name-$SCALE.md"
    fi
done
exit "$status"
