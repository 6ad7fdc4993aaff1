"""Floor 1: the objectives as plain functions of tensors. Knows nothing of files, models or data."""
