"""Backbones whose every tensor matters: at their start, branches and the class token are next to nothing."""

import torch

from dinoforge.model.table import build
from dinoforge.model.weights import Backbone, Preprocessing


def perturbed(config, *, spread=0.1, **preprocessing):
    """Of these settings, away from its start; biases of queries and keys stay as they are, for some layouts have none."""
    module = build(config, seed=0).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("qkv.bias"):
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.add_(drawn * spread)
    how = {"channels": config.channels, **({} if config.channels == 3 else {"mean": (0.0,), "std": (1.0,)})}
    return Backbone(module, config, Preprocessing(**{**how, **preprocessing}))
