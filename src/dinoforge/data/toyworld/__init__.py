"""Small worlds with exact ground truth, drawn in NumPy: every picture is a function of its seed and its number."""
