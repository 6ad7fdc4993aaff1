"""Floor 1: backbones, heads and their weights. Knows nothing of ranks or data."""
