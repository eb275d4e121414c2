#!/usr/bin/env bash
# Figure 1 of HDGE: histograms of log q(x) for cross-entropy, JEM and HDGE.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  7.3 EFLOP, 10.1 GPU hours at a sustained 200 TFLOP/s
#   small  0.4 PFLOP, 0.6 core hours at 0.2 TFLOP/s a core
#   half  0.43 PFLOP, 0.6 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure1_histograms
