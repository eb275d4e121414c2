#!/usr/bin/env bash
# Table 1 of HDGE, and the deviations of its Table 4: AUROC of log q(x) and of max q(y|x) against SVHN, CIFAR-10 interpolations, CIFAR-100 and CelebA.
# Cost of training one seed, shared experiments included (measured times: scripts/reproduce.sh):
#   paper  31 EFLOP, 43 GPU hours at a sustained 200 TFLOP/s
#   small  2.0 PFLOP, 2.8 core hours at 0.2 TFLOP/s a core
#   half  1.9 PFLOP, 2.6 core hours at 0.2 TFLOP/s a core
# SCALE=paper|small|half|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table1_ood
