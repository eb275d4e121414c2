#!/usr/bin/env bash
# Figure 3 of HDGE: class-conditional samples of HDGE + JEM.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure3_samples
