#!/usr/bin/env bash
# Figure 1 of HDGE: histograms of log q(x) for cross-entropy, JEM and HDGE.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure1_histograms
