"""What a run leaves on disk and how it moves: flags, checkpoints, records, schedule."""
