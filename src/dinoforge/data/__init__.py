"""Floor 1: from a data address to batches of views and masks. Knows nothing of models; patch sizes come as numbers."""
