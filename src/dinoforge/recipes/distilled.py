"""DINOv2's small models, distilled from ViT-g/14 (Oquab et al. 2023, sec. 5 and table 16), in our units.

Published are architecture, no masks, no stochastic depth, LayerScale, weight decay, steps, warm-up, batch, moving average and
learning rate: 1e-3, which is 7.1e-4 at the reference batch times the root of 2,048 / 1,024. Never published, and taken from
the run of the teacher: prototypes and heads, temperatures, clipping, factor on the patch embedding's rate, frozen prototypes,
views. Assumed: layer decay 1, as in the large runs, and 32 images on a GPU (``objective.group``). The code was never released.

``vit_small.matched`` is ours, for teachers that come without heads.

The released weights went through 10,000 more steps at 518 pixels, how is not said: ``high_resolution.images=20.48M
high_resolution.global_pixels=518`` adds them. They are no recipes of their own, for nothing in them would be published.
"""

from __future__ import annotations

import math

from dinoforge.base.schedule import Cosine
from dinoforge.data.masks import MaskConfig
from dinoforge.loss.matching import MatchingConfig
from dinoforge.model.vit import VitConfig
from dinoforge.recipes.large import vit_giant_lvd142m
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.small import vit_small_small_data
from dinoforge.train.distil import DistilConfig
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import ObjectiveConfig

BATCH = 2048


def _distilled(name: str, backbone: VitConfig) -> Recipe:
    base = vit_giant_lvd142m()
    plan = {
        "images": 625_000 * BATCH,
        "batch": BATCH,
        "learning_rate": Cosine(peak=1e-3 / math.sqrt(BATCH / 1024), end=1e-6, warmup=0.16),
        "checkpoint_images": 3750 * BATCH,
        "probe_images": 12_500 * BATCH,
    }
    return base.model_copy(
        update={
            "recipe": name,
            "backbone": backbone,
            "data": base.data.model_copy(update={"masks": MaskConfig()}),
            "objective": base.objective.model_copy(update={"group": 32}),
            "plan": base.plan.model_copy(update=plan),
            "distil": DistilConfig(),
        }
    )


def vit_small_distilled() -> Recipe:
    """ViT-S/14 from a trained ViT-g/14 (625,000 steps of 2,048 images); heads and views are assumed to be the teacher's."""
    return _distilled("vit_small.distilled", VitConfig(width=384, depth=12, heads=6, patch=14))


def vit_base_distilled() -> Recipe:
    """ViT-B/14 from a trained ViT-g/14 (625,000 steps of 2,048 images); heads and views are assumed to be the teacher's."""
    return _distilled("vit_base.distilled", VitConfig(width=768, depth=12, heads=12, patch=14))


def vit_large_distilled() -> Recipe:
    """ViT-L/14 from a trained ViT-g/14 (625,000 steps of 2,048 images); heads and views are assumed to be the teacher's."""
    return _distilled("vit_large.distilled", VitConfig(width=1024, depth=24, heads=16, patch=14))


def vit_small_matched() -> Recipe:
    """ViT-S/14 whose features are to come to those of any backbone, on one GPU. Our choice, not measured.

    No heads, local views or stochastic depth; otherwise as long and as fast as from scratch on as many pictures. Nothing is
    decayed more towards the end, for the targets stay what they are.
    """
    base = vit_small_small_data()
    plan = PlanConfig(
        images=base.plan.images,
        batch=base.plan.batch,
        learning_rate=base.plan.learning_rate,
        layer_decay=1.0,
        weight_decay=Cosine(peak=0.04, end=0.04),
        teacher_momentum=base.plan.teacher_momentum,
        checkpoint_images=base.plan.checkpoint_images,
        probe_images=base.plan.probe_images,
    )
    return base.model_copy(
        update={
            "recipe": "vit_small.matched",
            "backbone": base.backbone.model_copy(update={"drop_path": 0.0}),
            "data": base.data.model_copy(
                update={"augment": base.data.augment.model_copy(update={"local_views": 0}), "masks": MaskConfig()}
            ),
            "objective": ObjectiveConfig(group=base.objective.group),
            "distil": DistilConfig(matching=MatchingConfig()),
            "plan": plan,
        }
    )
