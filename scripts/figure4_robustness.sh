#!/usr/bin/env bash
# Figure 4 of HDGE: accuracy under PGD for cross-entropy, JEM, HDGE and adversarial training.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  10.8 EFLOP, 14.9 GPU hours at a sustained 200 TFLOP/s
#   small  1.0 PFLOP, 1.4 core hours at 0.2 TFLOP/s a core
#   half  0.43 PFLOP, 0.6 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure4_robustness
