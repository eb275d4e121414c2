#!/usr/bin/env bash
# Table 6 of HDGE: AUROC against the number of negatives (HDGE) and of chains (JEM), with the time of a step.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  36 EFLOP, 50 GPU hours at a sustained 200 TFLOP/s
#   small  1.8 PFLOP, 2.4 core hours at 0.2 TFLOP/s a core
#   half  2.2 PFLOP, 3.1 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table6_negatives
