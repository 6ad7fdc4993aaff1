"""Recipes for a descriptor of copies, which `curate descriptor=RUN` looks for near copies with."""

from __future__ import annotations

from dinoforge.base.schedule import Cosine
from dinoforge.data.augment import AugmentConfig, ColourConfig
from dinoforge.data.masks import MaskConfig
from dinoforge.loss.copies import CopyConfig
from dinoforge.model.heads import HeadConfig
from dinoforge.model.vit import VitConfig
from dinoforge.recipes.recipe import DataConfig, Recipe
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig

STRONG = ColourConfig(
    jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, solarise=0.0, blur=(0.5, 0.5, 0.5),
    blur_sigma=(1.0, 5.0),
)  # fmt: skip
"""SSCD's strong preset, both views alike. Blur is cut off at 9 pixels here, so that its widest is milder than theirs."""


def copy_descriptor() -> Recipe:
    """ViT-S/16 at 224 pixels, trained by SSCD's loss: two views of an image attract, those of 127 others repel.

    Views are SSCD's strong preset and the quarter turns of its advanced one; texts, emoji, slanted turns and JPEG of that one
    are not drawn. Images outside of a group are no negatives, so that results depend on no number of devices; the published
    batch is 4,096 images. The rate and the length are guesses, not measured.
    """
    return Recipe(
        recipe="copy.descriptor",
        backbone=VitConfig(width=384, depth=12, heads=6, patch=16),
        data=DataConfig(
            augment=AugmentConfig(global_scale=(0.08, 1.0), local_views=0, turn=0.05, colour=STRONG),
            masks=MaskConfig(probability=0.0),
        ),
        objective=ObjectiveConfig(
            group=128, copies=CopyConfig(), dino_weight=0.0, ibot_weight=0.0, koleo_weight=0.0,
            # Of no weight, and therefore as small as may be.
            head=HeadConfig(prototypes=64, hidden=64, bottleneck=16),
        ),
        plan=PlanConfig(
            images=5_000_000,
            batch=256,
            learning_rate=Cosine(peak=1e-3, end=1e-6, warmup=0.05),
            checkpoint_images=100_000,
            probe_images=250_000,
        ),
    )  # fmt: skip
