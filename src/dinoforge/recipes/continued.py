"""Recipes that go on from a trained backbone on other images: ``pretrain init=BACKBONE recipe=vit_small.continue``.

Nobody has published a tested one. Theirs are: heads and mask token first, for a tenth of the plan, with the backbone standing
still; then a part of the heads' learning rate for its last block, less for every block below, which follow one after another.
With ``retention=`` they act on what is lost of old skill.

``vit_small.heads`` stops there: it fits heads to a backbone that has none and stays what it is, so that it can teach.
"""

from __future__ import annotations

from dinoforge.base.schedule import Cosine, Ramp
from dinoforge.recipes.recipe import Recipe
from dinoforge.recipes.small import vit_micro_toy, vit_small_small_data
from dinoforge.train.continuation import ContinueConfig


def vit_micro_continue() -> Recipe:
    """A micro ViT goes on on other drawn pictures, in minutes on two CPU cores: to try it, and for tests.

    At the heads' rate, low layers hardly less: in its few hundred steps a tenth of it hardly moves a feature.
    """
    made = _continued("vit_micro.continue", vit_micro_toy(), {"layer_decay": 0.9})
    return made.model_copy(update={"continuation": ContinueConfig(backbone_rate=1)})


def vit_small_continue() -> Recipe:
    """ViT-S/14, or whatever ``init`` is, goes on on a million images of another domain, on one GPU. Our choice, not measured.

    The average follows more slowly than in a run from scratch, and the teacher is warm from the first step on, for the features
    are good and the heads are not yet.
    """
    base = vit_small_small_data()
    plan = {
        "images": 1_000_000,
        "learning_rate": Cosine(peak=1e-3, end=1e-6, warmup=0.1),
        "layer_decay": 0.8,
        "weight_decay": Cosine(peak=0.04, end=0.04),
        "teacher_momentum": Cosine(peak=0.996, end=1.0),
        "teacher_temperature": Ramp(start=0.07, end=0.07),
        "probe_images": 50_000,
    }
    return _continued("vit_small.continue", base, plan, drop_path=0.0)


def vit_small_heads() -> Recipe:
    """Heads for a backbone that comes without and stays as it is, so that `distil` can learn from this run.

    The official backbones are such. Few images are needed, for only heads learn. Our choice, not measured; nobody has
    published how.
    """
    base = vit_small_continue()
    plan = {"images": 500_000, "learning_rate": Cosine(peak=1e-3, end=1e-6, warmup=0.1)}
    how = ContinueConfig(warmup=1, unfreeze=0)
    return _continued("vit_small.heads", base, plan).model_copy(update={"continuation": how})


def _continued(name: str, base: Recipe, plan: dict[str, object], **backbone: object) -> Recipe:
    return base.model_copy(
        update={
            "recipe": name,
            "backbone": base.backbone.model_copy(update=backbone),
            "continuation": ContinueConfig(),
            "plan": base.plan.model_copy(update=plan),
        }
    )
