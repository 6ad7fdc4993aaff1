"""Floor 4: recipes, functions that return all settings of a run."""
