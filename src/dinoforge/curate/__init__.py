"""Floor 3: which images to learn from, and why. Manifests in, manifests out."""
