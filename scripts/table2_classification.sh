#!/usr/bin/env bash
# Table 2 of HDGE: accuracy with batch norm: cross-entropy, SupCon, JEM, HDGE, and log q(x|y) alone.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" table2_classification
