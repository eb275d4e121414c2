#!/usr/bin/env bash
# Eq. 14 of HDGE: accuracy and AUROC for alpha = 0, .25, .5, .75 and 1.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  1.6 EFLOP, 2.2 GPU hours at a sustained 200 TFLOP/s
#   small  0.6 PFLOP, 0.8 core hours at 0.2 TFLOP/s a core
#   half  0.30 PFLOP, 0.41 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" alpha
