"""Floor 0: errors, settings, files, random numbers, schedules, collectives. Knows nothing of images or models."""
