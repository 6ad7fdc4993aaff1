"""The published runs of DINOv2 (training configurations and table 16 of the paper), in our units.

The released configurations name every value, those of a run on ImageNet-1k and of two on ImageNet-22k. Of the runs on
LVD-142M table 16 prints architecture, drop rate, LayerScale, weight decay, steps, warm-up, batch, moving average and learning
rate: 3.5e-4, which is 2e-4 at the reference batch times the root of 3,072 / 1,024. Never published for them, and taken from
the configurations for ImageNet-22k: heads and prototypes, targets and their temperature, layer decay, factor on the patch
embedding's rate, clipping, frozen prototypes, views, masks, and images on a GPU, which are the neighbours that KoLeo knows
(``objective.group``). Precision was fp16 with scaled gradients; here it is what the device is fast in.
"""

from __future__ import annotations

from dinoforge.base.schedule import Cosine, Ramp
from dinoforge.data.augment import AugmentConfig
from dinoforge.data.masks import MaskConfig
from dinoforge.model.heads import HeadConfig
from dinoforge.model.vit import VitConfig
from dinoforge.recipes.phase import HighResolution
from dinoforge.recipes.recipe import DataConfig, Recipe, Speed
from dinoforge.train.plan import PlanConfig
from dinoforge.train.step import CentringConfig, ObjectiveConfig


def vit_large_imagenet() -> Recipe:
    """ViT-L/16 on ImageNet-1k, the short published schedule (125,000 steps of 2,048 images)."""
    return Recipe(
        recipe="vit_large.imagenet",
        backbone=VitConfig(width=1024, depth=24, heads=16, patch=16, drop_path=0.3),
        data=DataConfig(augment=AugmentConfig(local_pixels=96), masks=MaskConfig(exact=False)),
        objective=ObjectiveConfig(group=64, targets=CentringConfig()),
        plan=PlanConfig(
            images=125_000 * 2048,
            batch=2048,
            learning_rate=Cosine(peak=4e-3, end=1e-6, warmup=0.1),
            last_layer_frozen=0.01,
            teacher_momentum=Cosine(peak=0.992, end=1.0),
            teacher_temperature=Ramp(start=0.04, end=0.07, length=0.3),
            checkpoint_images=3750 * 2048,
            probe_images=12_500 * 2048,
        ),
        speed=Speed(workers=10),
    )


def vit_large_imagenet22k() -> Recipe:
    """ViT-L/14 with SwiGLU on ImageNet-22k, the long published schedule (625,000 steps of 3,072 images)."""
    base = vit_large_imagenet()
    return base.model_copy(
        update={
            "recipe": "vit_large.imagenet22k",
            "backbone": VitConfig(width=1024, depth=24, heads=16, patch=14, ffn="swiglu", drop_path=0.4),
            "data": DataConfig(masks=MaskConfig(exact=False)),
            "objective": ObjectiveConfig(
                group=32,
                head=HeadConfig(prototypes=131_072, bottleneck=384),
                patch_head=HeadConfig(prototypes=131_072, bottleneck=256),
            ),
            "plan": base.plan.model_copy(
                update={
                    "images": 625_000 * 3072,
                    "batch": 3072,
                    "learning_rate": Cosine(peak=2e-4, end=1e-6, warmup=0.16),
                    "last_layer_frozen": 0.002,
                    "layer_decay": 1.0,
                    "weight_decay": Cosine(peak=0.04, end=0.2),
                    "teacher_momentum": Cosine(peak=0.994, end=1.0),
                    "teacher_temperature": Ramp(start=0.04, end=0.07, length=0.06),
                    "checkpoint_images": 3750 * 3072,
                    "probe_images": 12_500 * 3072,
                }
            ),
        }
    )


def vit_large_lvd142m() -> Recipe:
    """ViT-L/14 from scratch on a curated set such as LVD-142M (625,000 steps of 3,072 images).

    What table 16 prints of it is what the configuration for ImageNet-22k says, so only the images differ.
    """
    return vit_large_imagenet22k().model_copy(update={"recipe": "vit_large.lvd142m"})


def vit_giant_lvd142m() -> Recipe:
    """ViT-g/14 on a curated set such as LVD-142M (625,000 steps of 3,072 images); the teacher of the small models."""
    base = vit_large_lvd142m()
    return base.model_copy(
        update={
            "recipe": "vit_giant.lvd142m",
            "backbone": VitConfig(width=1536, depth=40, heads=24, patch=14, ffn="swiglu", drop_path=0.4),
            "objective": base.objective.model_copy(update={"group": 12}),
        }
    )


def vit_giant_lvd142m_registers() -> Recipe:
    """ViT-g/14 with four registers on a curated set such as LVD-142M, otherwise as without.

    Darcet et al. 2024 change nothing else in training; positions are resampled as for the released weights, antialiased and
    without offset.
    """
    base = vit_giant_lvd142m()
    registers = {"registers": 4, "position_offset": 0.0, "position_antialias": True}
    return base.model_copy(
        update={
            "recipe": "vit_giant.lvd142m_registers",
            "backbone": base.backbone.model_copy(update=registers),
        }
    )


def vit_large_imagenet_416() -> Recipe:
    """ViT-L/16 on ImageNet-1k with a last part of 10,000 steps at 416 pixels (fig. 6 of the paper).

    The learning rate of that part and its local views were never published; they are those of ``HighResolution``.
    """
    return vit_large_imagenet().model_copy(
        update={
            "recipe": "vit_large.imagenet_416",
            "high_resolution": HighResolution(images=10_000 * 2048, global_pixels=416),
        }
    )


def vit_giant_lvd142m_518() -> Recipe:
    """ViT-g/14 on a curated set such as LVD-142M with a last part of 10,000 steps at 518 pixels, as the released weights.

    The learning rate of that part and its local views were never published; they are those of ``HighResolution``.
    """
    return vit_giant_lvd142m().model_copy(
        update={
            "recipe": "vit_giant.lvd142m_518",
            "high_resolution": HighResolution(images=10_000 * 3072, global_pixels=518),
        }
    )
