"""The head ``mask2former`` of ``segmentation``: how it is made and what it learns (Cheng et al. 2022, on frozen tokens).

Axes: B crops, Y by X pixels of a window.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoforge.base.random import key, torch_generator
from dinoforge.evaluate.dense.lessons import Lesson
from dinoforge.evaluate.dense.trunk import Trunk, margins
from dinoforge.loss.masks import MaskLossConfig, mask_loss, mask_target
from dinoforge.model.mask2former import Mask2Former, Mask2FormerConfig


class MasksConfig(Mask2FormerConfig, MaskLossConfig):
    """The head and its loss."""


def first_masks(trunk: Trunk, classes: int, config: MasksConfig, *, seed: int) -> Mask2Former:
    """The head before it has learnt anything."""
    return Mask2Former(
        config, channels=trunk.preprocessing.channels, features=trunk.width * trunk.count, classes=classes,
        seed=key(seed, "mask head"),
    )  # fmt: skip


def options_of(trunk: Trunk, config: MasksConfig) -> dict[str, Any]:
    """What is put down of the head, so that it can be made again."""
    return {
        "channels": trunk.preprocessing.channels,
        **{name: getattr(config, name) for name in Mask2FormerConfig.model_fields},
    }


def masks_loss(
    trunk: Trunk, head: Mask2Former, lesson: Lesson, config: MasksConfig, *, ignore: int, seed: int
) -> Tensor:
    """The losses of what every layer of the decoder says, summed; the padding of a window is ignored as unknown pixels are."""
    (top, bottom), (left, right) = (margins(length, trunk.patch) for length in lesson.truth.shape[1:])
    padded = F.pad(lesson.truth, (left, right, top, bottom), value=ignore)
    targets = [mask_target(one, ignore=ignore) for one in padded]
    draws = torch_generator(seed, "mask points", lesson.step)
    found = head.said(lesson.layers)
    return torch.stack([
        mask_loss(one.classes, one.masks, targets, config=config, generator=draws) for one in reversed(found)
    ]).sum()  # fmt: skip


def told_of(config: MasksConfig) -> str:
    """The head in words."""
    return (
        f"adapter of {config.width} channels and Mask2Former of {config.pixel_layers} and {config.decoder_layers} layers, "
        f"{config.queries} queries"
    )
