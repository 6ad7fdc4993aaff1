"""Floor 3: one update, and the loop around it."""
