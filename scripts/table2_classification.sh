#!/usr/bin/env bash
# Table 2 of HDGE: accuracy with batch norm: cross-entropy, SupCon, JEM, HDGE, and log q(x|y) alone.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  6.2 EFLOP, 8.6 GPU hours at a sustained 200 TFLOP/s
#   small  1.6 PFLOP, 2.2 core hours at 0.2 TFLOP/s a core
#   half  0.8 PFLOP, 1.1 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table2_classification
