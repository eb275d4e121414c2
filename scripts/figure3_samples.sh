#!/usr/bin/env bash
# Figure 3 of HDGE: class-conditional samples of HDGE + JEM.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  8.7 EFLOP, 12.1 GPU hours at a sustained 200 TFLOP/s
#   small  0.3 PFLOP, 0.4 core hours at 0.2 TFLOP/s a core
#   half  0.69 PFLOP, 0.96 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure3_samples
