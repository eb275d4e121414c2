#!/usr/bin/env bash
# Figure 4 of HDGE: accuracy under PGD for cross-entropy, JEM, HDGE and adversarial training.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure4_robustness
