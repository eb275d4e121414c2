#!/usr/bin/env bash
# Table 3 of HDGE: accuracy, Inception Score and FID of hybrid models.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table3_hybrid
