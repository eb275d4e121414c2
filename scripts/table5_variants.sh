#!/usr/bin/env bash
# Table 5 of HDGE, and Eq. 13 beside Algorithm 1: AUROC with a queue, in SimCLR style, and without normalising the logits.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  1.6 EFLOP, 2.2 GPU hours at a sustained 200 TFLOP/s
#   small  0.7 PFLOP, 1.0 core hours at 0.2 TFLOP/s a core
#   half  0.35 PFLOP, 0.49 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table5_variants
