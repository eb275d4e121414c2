#!/usr/bin/env bash
# Not in the papers: AUROC and accuracy of cross-entropy with and without batch norm and input noise.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  1.3 EFLOP, 1.8 GPU hours at a sustained 200 TFLOP/s
#   small  0.47 PFLOP, 0.7 core hours at 0.2 TFLOP/s a core
#   half  0.24 PFLOP, 0.33 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" baseline
