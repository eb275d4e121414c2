#!/usr/bin/env bash
# Figure 2 of HDGE: reliability diagrams on CIFAR-100 for cross-entropy, JEM and HDGE.
# SCALE=paper|small|smoke, SEEDS="1 2 3", JOBS and GPUS: see scripts/reproduce.sh.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh" figure2_calibration
