#!/usr/bin/env bash
# Table 6 of HDGE: AUROC against the number of negatives (HDGE) and of chains (JEM), with the time of a step.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table6_negatives
