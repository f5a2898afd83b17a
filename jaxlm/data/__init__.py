"""From files to batches: a pure function of (seed, step)."""
