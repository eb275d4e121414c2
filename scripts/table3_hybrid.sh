#!/usr/bin/env bash
# Table 3 of HDGE: accuracy, Inception Score and FID of hybrid models.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  29 EFLOP, 40 GPU hours at a sustained 200 TFLOP/s
#   small  1.5 PFLOP, 2.1 core hours at 0.2 TFLOP/s a core
#   half  1.7 PFLOP, 2.3 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table3_hybrid
