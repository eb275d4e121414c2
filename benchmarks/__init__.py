"""Measurements of scripts/bench.py and gpu.sh: speed, gradients, and the straightforward step."""
