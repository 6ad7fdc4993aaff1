"""Floor 3: pictures and pages made from finished runs."""
