#!/usr/bin/env bash
# Not in the papers: AUROC and accuracy of HDGE for T = .05, .1, .2 and .5 in the contrastive term.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  1.6 EFLOP, 2.2 GPU hours at a sustained 200 TFLOP/s
#   small  0.59 PFLOP, 0.8 core hours at 0.2 TFLOP/s a core
#   half  0.29 PFLOP, 0.41 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" temperature
