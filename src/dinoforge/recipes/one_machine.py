"""The published runs for one machine: 1 or 8 GPUs of 80 GB, with the batch that these compute at once.

Only the batch is smaller; the learning rate follows by its root, and the images of the plan stay, so there are more steps. All
else is as published, group and teacher momentum too. A name says what a batch was chosen for, no more: on fewer GPUs the batch
comes in parts, on more of them in smaller shares, and the result is the same.

Every batch is the largest power of two that is forecast, in bf16, to take less than 85 % of the memory
(``recipes.cost.MOST_MEMORY``; tests/unit/recipes/test_one_machine.py). None of these runs was made by the authors, and none was
measured here.
"""

from __future__ import annotations

from typing import Any

from dinoforge.recipes.large import vit_large_imagenet, vit_large_lvd142m
from dinoforge.recipes.recipe import Recipe


def vit_small_imagenet_1gpu() -> Recipe:
    """ViT-S/16 on ImageNet-1k by the short published schedule, 512 images a step: one GPU of 80 GB.

    DINOv2 distils this size and publishes no run of it from scratch; stochastic depth is that of DINO's (0.1).
    """
    return _with_batch(
        "vit_small.imagenet_1gpu", vit_large_imagenet(), 512, width=384, depth=12, heads=6, drop_path=0.1
    )


def vit_base_imagenet_1gpu() -> Recipe:
    """ViT-B/16 on ImageNet-1k by the short published schedule, 256 images a step: one GPU of 80 GB.

    DINOv2 distils this size and publishes no run of it from scratch; stochastic depth is that of DINO's (0.1).
    """
    return _with_batch(
        "vit_base.imagenet_1gpu", vit_large_imagenet(), 256, width=768, depth=12, heads=12, drop_path=0.1
    )


def vit_large_imagenet_8gpu() -> Recipe:
    """ViT-L/16 on ImageNet-1k, the short published schedule with 1,024 images a step: 8 GPUs of 80 GB."""
    return _with_batch("vit_large.imagenet_8gpu", vit_large_imagenet(), 1024)


def vit_large_lvd142m_8gpu() -> Recipe:
    """ViT-L/14 on a curated set such as LVD-142M, the long published schedule with 512 images a step: 8 GPUs of 80 GB."""
    return _with_batch("vit_large.lvd142m_8gpu", vit_large_lvd142m(), 512)


def _with_batch(name: str, base: Recipe, batch: int, **backbone: Any) -> Recipe:
    return base.model_copy(
        update={
            "recipe": name,
            "backbone": base.backbone.model_copy(update=backbone),
            "plan": base.plan.model_copy(update={"batch": batch}),
        }
    )
