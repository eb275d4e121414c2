"""How a run trains: flags, setup, the session around its steps, state, divergence, cost."""
