#!/usr/bin/env bash
# Eq. 14 of HDGE: accuracy and AUROC for alpha = 0, .25, .5, .75 and 1.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" alpha
