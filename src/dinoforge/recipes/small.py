"""Recipes for one desk: a laptop's processor, one graphics card, a folder of a few thousand pictures."""

from __future__ import annotations

from dinoforge.base.schedule import Cosine, Ramp
from dinoforge.data.augment import AugmentConfig
from dinoforge.model.heads import HeadConfig
from dinoforge.model.vit import VitConfig
from dinoforge.recipes.recipe import DataConfig, Recipe
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig


def vit_tiny_small_images() -> Recipe:
    """A small ViT for 32 to 64 pixel pictures, on two CPU cores in half an hour."""
    return Recipe(
        recipe="vit_tiny.small_images",
        backbone=VitConfig(width=192, depth=6, heads=3, patch=4, pixels=32, layerscale=1e-1),
        data=DataConfig(
            augment=AugmentConfig(
                global_pixels=32,
                local_pixels=16,
                local_views=4,
                global_scale=(0.32, 1.0),
                local_scale=(0.1, 0.4),
            ),
            resize=32,
        ),
        objective=ObjectiveConfig(head=HeadConfig(prototypes=2048, hidden=512, bottleneck=128)),
        plan=PlanConfig(
            images=100_000,
            batch=64,
            learning_rate=Cosine(peak=4e-3, end=1e-6, warmup=0.1),
            weight_decay=Cosine(peak=0.04, end=0.1),
            layer_decay=1.0,
            patch_rate=1.0,
            teacher_momentum=Cosine(peak=0.99, end=1.0),
            teacher_temperature=Ramp(start=0.04, end=0.07, length=0.3),
            checkpoint_images=10_000,
            probe_images=20_000,
        ),
    )
