"""How a run moves and what it leaves on disk: flags, loop, schedule, records, checkpoints."""
