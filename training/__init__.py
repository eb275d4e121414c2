"""Train a run: command-line flags, setup, session (the loop), state, divergence, cost."""
