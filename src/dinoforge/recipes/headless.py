"""The teacher whose features are matched: any backbone, heads or none, also one of another library (``hf:``, ``timm:``)."""

from __future__ import annotations

import torch

from dinoforge.base.errors import ConfigError
from dinoforge.model.foreign import ForeignConfig, open_backbone
from dinoforge.model.table import BackboneConfig
from dinoforge.model.vit import VitConfig
from dinoforge.model.weights import Backbone
from dinoforge.recipes.quality import same_eyes
from dinoforge.recipes.recipe import Recipe


def opened_teacher(recipe: Recipe, address: str) -> Backbone:
    """The backbone at an address, which has been shown one view of every size that the student will see.

    Raises:
        ConfigError: It takes other channels, sees other colours, or its patches come to lie on another grid.
        WeightsError: It cannot be read.
    """
    found = open_backbone(address)
    has, wanted = found.config.channels, recipe.backbone.channels
    if has != wanted:
        raise ConfigError(
            f"teacher={address} has channels={has}, the student backbone.channels={wanted}; both must be the same."
        )
    same_eyes(recipe, found.preprocessing, f"teacher={address}")
    phase = recipe.high_resolution
    _one_grid(recipe, found, address, setting="data.augment.global_pixels", pixels=recipe.data.augment.global_pixels)
    if phase is not None:
        _one_grid(recipe, found, address, setting="high_resolution.global_pixels", pixels=phase.global_pixels)
    return found


def _one_grid(recipe: Recipe, teacher: Backbone, address: str, *, setting: str, pixels: int) -> None:
    """Refuse a teacher whose patches cannot lie on the student's grid: it sees a view as large as that many of its patches.

    Raises:
        ConfigError: It cannot.
    """
    side = pixels // recipe.backbone.patch
    view = torch.zeros(1, recipe.backbone.channels, side * teacher.module.patch, side * teacher.module.patch)
    try:
        with torch.no_grad():
            grid = tuple(teacher.module(view).patches.shape[1:3])
    except ConfigError:
        grid = None
    if grid != (side, side):
        made = "takes no views of that size" if grid is None else f"makes {grid[0]}x{grid[1]} patches of that"
        fitting = teacher.config.pixels // teacher.module.patch * recipe.backbone.patch
        raise ConfigError(
            f"{setting}={pixels} is {side}x{side} patches of the student, for which teacher={address} has to see "
            f"{view.shape[-1]} pixels, and it {made}; {setting}={fitting} would be its own grid."
        )


def counted_as(teacher: Backbone) -> BackboneConfig:
    """What it costs: its own architecture; a model of another library as a ViT of its width and about its parameters."""
    config = teacher.config
    if not isinstance(config, ForeignConfig):
        return config
    block = 12 * config.width**2
    depth = max(round(sum(p.numel() for p in teacher.module.parameters()) / block), 1)
    side = max(config.pixels // config.patch, 1) * config.patch
    return VitConfig(
        width=config.width, depth=depth, heads=1, patch=config.patch, pixels=side, channels=config.channels
    )
