"""What scripts/bench.py measures: this project's training step beside the straightforward one."""
