#!/usr/bin/env bash
# Figure 5 of HDGE: CIFAR-100 accuracy against the number of negatives, with the line of cross-entropy.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  1.9 EFLOP, 2.7 GPU hours at a sustained 200 TFLOP/s
#   small  0.7 PFLOP, 1.0 core hours at 0.2 TFLOP/s a core
#   half  0.35 PFLOP, 0.49 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure5_negatives
