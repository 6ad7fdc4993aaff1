"""dinoforge: self-supervised visual features, from a heap of unlabelled images to frozen features that serve."""

__version__ = "0.1.0"
