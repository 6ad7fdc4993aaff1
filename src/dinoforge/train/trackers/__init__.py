"""Where a run's numbers can go besides ``metrics.jsonl``, one file each; each library is an extra."""
