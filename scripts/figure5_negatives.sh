#!/usr/bin/env bash
# Figure 5 of HDGE: CIFAR-100 accuracy against the number of negatives, with the line of cross-entropy.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure5_negatives
