#!/usr/bin/env bash
# Table 1 of HDGE, and the deviations of its Table 4: AUROC of log q(x) and of max q(y|x) against SVHN, CIFAR-10 interpolations, CIFAR-100 and CelebA.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table1_ood
