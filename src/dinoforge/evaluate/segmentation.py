"""``segmentation``: a linear head tells the class of every pixel from frozen patches (Oquab et al. 2023, sec. 7.4).

``segmentation_ms`` is the paper's stronger setting: four blocks, larger pictures, several scales and mirrored. With
``head=mask2former`` an adapter and Mask2Former stand in the place of the linear head (``segmentation_masks.py``).

Axes: B crops, K classes, h by w cells, Y by X pixels, P pixels whose loss counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Count
from dinoforge.base.random import torch_generator
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.classes import told_apart
from dinoforge.evaluate.dense.infer import Scales, ViewingConfig, viewed
from dinoforge.evaluate.dense.labels import Ignored, MaskClasses, labelled_sides
from dinoforge.evaluate.dense.learn import learn
from dinoforge.evaluate.dense.lessons import Lesson, LessonsConfig, Truths, lessons_of
from dinoforge.evaluate.dense.told import measured
from dinoforge.evaluate.dense.trunk import Trunk, trunk_of
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.score import Score
from dinoforge.evaluate.segmentation_masks import MasksConfig, first_masks, masks_loss, options_of, told_of
from dinoforge.features.eyes import Eyes
from dinoforge.model.head_files import HeadFacts, save_head
from dinoforge.model.released_heads import LinearSegmentation

_STD = 0.01
_MASK_LAYERS = 4


class SegmentationConfig(LessonsConfig, ViewingConfig):
    """A linear head on the patches of the last block, or Mask2Former on those of the last four."""

    head: Literal["linear", "mask2former"] = "linear"
    """What learns: batch norm and linear layer, or an adapter and Mask2Former, which need ``dinoforge[interop]``."""
    layers: int | None = Field(default=None, gt=0)
    """Last blocks that the head sees side by side; of a backbone with fewer, all. Null: 1 for the linear head, 4 for the
    other."""
    mask2former: MasksConfig | None = None
    """Sizes and loss of that head; null: their defaults."""
    crop: int | None = Field(default=None, gt=0, le=8192)
    """Side of a crop and of a window, in pixels; null: the short side of a picture."""
    enlarge: float = Field(default=1.0, gt=0, le=8)
    """How much larger than usual a picture is seen where ``pixels`` does not say."""
    classes: int | None = Field(default=None, ge=2)
    """Number of classes; null: those that classes.json beside the images names, else the highest number in a mask, and 1."""
    ignore: Ignored | None = None
    """Number in masks where nothing is known; null: what classes.json says, else 255."""
    points: Count | None = Field(default=4096, gt=0)
    """Pixels of a crop whose loss counts, drawn anew in each update: many times as fast, with the same mean. Null: all, as
    published. Of the linear head; the other one has ``mask2former.points``."""

    @model_validator(mode="after")
    def _of_this_head(self) -> SegmentationConfig:
        if self.head == "linear" and self.mask2former is not None:
            raise ValueError("settings of mask2former have no effect with head=linear; take head=mask2former.")
        if self.head == "mask2former" and self.points != type(self).model_fields["points"].default:
            raise ValueError(f"points={self.points} has no effect with head=mask2former; give mask2former.points.")
        return self

    @property
    def seen(self) -> int:
        """How many blocks the head sees."""
        return self.layers or (1 if self.head == "linear" else _MASK_LAYERS)

    @property
    def masks(self) -> MasksConfig:
        """The settings of the other head."""
        return self.mask2former or MasksConfig()

    @model_validator(mode="after")
    def _one_size(self) -> SegmentationConfig:
        if self.pixels is not None and self.enlarge != type(self).model_fields["enlarge"].default:
            raise ValueError(f"enlarge={self.enlarge} has no effect with pixels={self.pixels}; give one of them.")
        return self


class SegmentationMsConfig(SegmentationConfig):
    """The same with more of everything ("+ms")."""

    layers: int | None = Field(default=4, gt=0)
    """Last blocks that the head sees side by side; of a backbone with fewer, all."""
    enlarge: float = Field(default=1.25, gt=0, le=8)
    """How much larger than usual a picture is seen where ``pixels`` does not say; 640 for 512 pixels as published."""
    scales: Scales = (1.0, 1.32, 1.73, 2.28, 3.0)
    """Sizes, relative to ``pixels``, at which a test picture is seen; the answers are averaged."""
    flip: bool = True
    """Whether a test picture is also seen with left and right exchanged, and the answers averaged."""


def pixel_loss(
    trunk: Trunk, cells: Float[Tensor, "B K h w"], lesson: Lesson, *, ignore: int, points: int | None, seed: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the bilinearly enlarged scores over known pixels, of all or of so many drawn ones a crop."""
    truth = lesson.truth
    if points is None or points >= truth[0].numel():
        scores = trunk.on_pixels(cells, truth.shape[1], truth.shape[2])
    else:
        drawn = torch_generator(seed, "dense points", lesson.step)
        places = torch.randint(truth[0].numel(), (len(truth), points), generator=drawn).to(truth.device)
        scores, truth = (
            trunk.at_pixels(cells, places, truth.shape[1], truth.shape[2]),
            truth.flatten(1).gather(1, places),
        )
    total = F.cross_entropy(scores, truth, ignore_index=ignore, reduction="sum")
    return total / (truth != ignore).sum().clamp(min=1)


def _measure(
    eyes: Eyes, sides: Sides, config: SegmentationConfig, *, task: str, save: Path | None = None
) -> list[Score]:
    told = eyes.on_broken
    both, classes = labelled_sides(sides, classes=config.classes, ignore=config.ignore, on_broken=told)
    trunk = trunk_of(eyes, config.seen, pictures=config.head == "mask2former")
    short_side = config.pixels or trunk.usual_side(config.enlarge)
    window = config.crop or short_side
    truths = Truths("mask", classes.ignore, short_side, (window, window))
    head, loss = _to_be_taught(trunk, classes, config)
    learn(head, lessons_of(trunk, both.known, truths, config, on_broken=told), loss, config, title=task)
    how = _protocol(config, trunk, short_side=short_side, window=window, images=len(both.known), classes=classes)
    if save is not None:
        facts = _facts(eyes, trunk, both.known, classes, config, short_side=short_side, window=window, how=how)
        if config.head == "mask2former":
            facts = facts.model_copy(update={"family": config.head, "options": options_of(trunk, config.masks)})
        save_head(save, head, facts)
    return measured(
        trunk, head, both.asked, classes, config, task=task, short_side=short_side, window=window,
        answer=_shares if config.head == "mask2former" else partial(torch.softmax, dim=0), protocol=how,
    )  # fmt: skip


def _to_be_taught(
    trunk: Trunk, classes: MaskClasses, config: SegmentationConfig
) -> tuple[nn.Module, Callable[[Lesson], Tensor]]:
    """The head that is asked for, and its loss."""
    device, ignore, seed = trunk.how.device, classes.ignore, config.seed
    if config.head == "mask2former":
        masks, how = first_masks(trunk, len(classes), config.masks, seed=seed).to(device), config.masks
        return masks, lambda lesson: masks_loss(trunk, masks, lesson, how, ignore=ignore, seed=seed)
    linear = first_head(trunk, len(classes), seed).to(device)
    return linear, lambda lesson: pixel_loss(
        trunk, linear(lesson.layers), lesson, ignore=ignore, points=config.points, seed=seed
    )


def _shares(scores: Float[Tensor, "K Y X"]) -> Float[Tensor, "K Y X"]:
    """Of masks: their scores are chances already."""
    return scores


def first_head(trunk: Trunk, classes: int, seed: int) -> LinearSegmentation:
    """The released head's module, its weights N(0, 0.01) and its biases 0."""
    head = LinearSegmentation(trunk.width, trunk.count, classes)
    nn.init.normal_(head.conv_seg.weight, std=_STD, generator=torch_generator(seed, "dense head"))
    nn.init.zeros_(head.conv_seg.bias)  # type: ignore[arg-type]
    return head


def _facts(
    eyes: Eyes, trunk: Trunk, known: Source, classes: MaskClasses, config: SegmentationConfig, *, short_side: int,
    window: int, how: str,
) -> HeadFacts:  # fmt: skip
    """What is put down beside a head."""
    return HeadFacts(
        kind="segmentation", width=trunk.width, blocks=trunk.numbers, norm=trunk.norm,
        classes=told_apart(classes.names, range(len(classes))),
        ignore=classes.ignore, short_side=short_side, window=window if config.inference == "slide" else None,
        scales=config.scales, flip=config.flip, preprocessing=eyes.backbone.preprocessing,
        backbone=eyes.backbone.fingerprint, data=known.fingerprint, protocol=how,
    )  # fmt: skip


def _protocol(
    config: SegmentationConfig, trunk: Trunk, *, short_side: int, window: int, images: int, classes: MaskClasses
) -> str:
    seen = "windows without augmentation" if config.augment == "none" else "random crops"
    points = "all pixels" if config.points is None else f"{config.points} pixels a crop"
    head = "batch norm and linear layer"
    if config.head == "mask2former":
        head, points = told_of(config.masks), f"{config.masks.points} points a mask"
    return (
        f"{head} on patches of {_last(trunk.count)}, {len(classes)} classes; "
        f"{config.iterations} updates of {config.batch} {seen} of {window} pixels, {points}, AdamW {config.learning_rate:g}, "
        f"{images} train pictures; {viewed(config, short_side=short_side, window=window)}"
    )


def _last(count: int) -> str:
    return "the last block" if count == 1 else f"the last {count} blocks"


SEGMENTATION = Evaluation(SegmentationConfig, "masks", partial(_measure, task="segmentation"), once=True, heads=True)
SEGMENTATION_MS = Evaluation(
    SegmentationMsConfig, "masks", partial(_measure, task="segmentation_ms"), once=True, heads=True
)
