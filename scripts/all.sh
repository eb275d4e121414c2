#!/usr/bin/env bash
# All tables and figures that have rows at the scale; an experiment that several of them share is trained once.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  86 EFLOP, 119 GPU hours at a sustained 200 TFLOP/s
#   small  8.6 PFLOP, 11.9 core hours at 0.2 TFLOP/s a core
#   half  7.3 PFLOP, 10.2 core hours at 0.2 TFLOP/s a core
# No table is printed at the end: all tables are in $ROOT/RESULTS.md and $ROOT/results/.
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" all
