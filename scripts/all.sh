#!/usr/bin/env bash
# Every table and figure that the scale has rows of; what several of them need is trained once.
# Cost of a seed's training, shared experiments included (what was measured: scripts/reproduce.sh):
#   paper  86 EFLOP, 119 GPU hours at a sustained 200 TFLOP/s
#   small  8.6 PFLOP, 11.9 core hours at 0.2 TFLOP/s a core
#   half  6.3 PFLOP, 8.7 core hours at 0.2 TFLOP/s a core
# No table is printed at the end: all of them are in $ROOT/RESULTS.md and $ROOT/results/.
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" all
