#!/usr/bin/env bash
# Table 5 of HDGE, and Eq. 13 beside Algorithm 1: AUROC with a queue, in SimCLR style, and without normalising the logits.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table5_variants
