"""``depth``: a head tells the depth of every pixel from the tokens of a frozen backbone (Oquab et al. 2023, sec. 7.4).

Three heads, the very modules that were released: ``linear`` ("lin. 1") and ``linear4`` ("lin. 4"), which share depth out over
256 bins, and ``dpt``, a convolutional decoder that regresses it.

Axes: B crops, Y by X pixels, h by w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor, nn

from dinoforge.base.config import Count
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.log import say
from dinoforge.base.random import torch_generator
from dinoforge.data.depth_units import DISPARITY, known_unit
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.dense.cut import Ratio
from dinoforge.evaluate.dense.infer import ViewingConfig, viewed
from dinoforge.evaluate.dense.learn import learn
from dinoforge.evaluate.dense.lessons import Lesson, LessonsConfig, Truths, lessons_of
from dinoforge.evaluate.dense.pieces import Viewing, joined
from dinoforge.evaluate.dense.ranged import TRUTH, DepthRange, measured_sides
from dinoforge.evaluate.dense.trunk import Trunk, trunk_of
from dinoforge.evaluate.dense.truth import usable_pairs
from dinoforge.evaluate.depth_metrics import ALIGNED, MEASURES, Crop, aligned_errors, errors, inside
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.score import Score, mean_interval
from dinoforge.features.extract import reading
from dinoforge.features.eyes import Eyes
from dinoforge.features.kinds import shows_blocks
from dinoforge.loss.depth import WARM_UP, gradient_loss, scale_invariant_loss
from dinoforge.model.head_files import HeadFacts, save_head, spread_blocks
from dinoforge.model.released_heads import DptDepth, LinearDepth

_TASK = "depth"
_BINS, _FOUR, _STD = 256, 4, 0.01
_BETAS = (0.9, 0.99)
"""Of AdamW, as DINOv3 trains its depth heads."""
_RISING = 1 / 3
"""Share of the updates in which the learning rate rises (12,800 of 38,400)."""
_WARMING = 0.1
"""Share of the updates, at most, in which only the scale is learnt."""
_WORDS = {
    "linear": "linear head on the last block",
    "linear4": "linear head on four blocks",
    "dpt": "DPT on four blocks",
}


def _text(value: object) -> object:
    """A number as it would be typed; all else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class DepthConfig(LessonsConfig, ViewingConfig):
    """A head for depth, how it is trained, and where it is judged."""

    head: Literal["linear", "linear4", "dpt"] = "linear"
    """A linear layer on class token and patches of the last block, of four blocks, or a convolutional decoder on four."""
    norm: bool = True
    """Whether each block passes the backbone's last norm."""
    unit: Annotated[str | None, BeforeValidator(_text)] = None
    """Of the depth maps: metres, centimetres, millimetres, disparity, or how many metres one is; null: what the source says,
    else 16-bit integers are millimetres."""
    nearest: float = Field(default=0.001, gt=0)
    """Least depth that is told, in metres or in disparity."""
    farthest: float | None = Field(default=None, gt=0)
    """Largest depth that is told; readings beyond it do not count. Null: 10 metres, or 80 where more than a tenth of the
    readings to learn from are beyond 10 (NYU's and KITTI's ranges); of disparity the largest reading to learn from, and larger
    ones count too."""
    crop: Crop = "none"
    """Where a test picture is judged: everywhere, in Eigen's part of NYU Depth or in Garg's of KITTI."""
    window: int | None = Field(default=None, gt=0, le=8192)
    """Side of a crop or window that is learnt from, in pixels; null: the short side of a picture."""
    gradient_weight: float = Field(default=0.0, ge=0)
    """What the multi-scale gradient loss weighs beside the scale-invariant one; 0.5 in the published configuration, whose code
    always makes it 0."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    schedule: Literal["poly", "cosine"] = "cosine"
    """How the learning rate falls to 0: in a line (poly of power 1), or as half a cosine."""
    warmup: Count | None = Field(default=None, ge=0)
    """Updates in which it rises; null: a third of them (12,800 of 38,400)."""
    clip: float | None = Field(default=35.0, gt=0)
    """Largest norm of a gradient; null leaves gradients as they are."""
    ratio: Ratio = (1.0, 1.0)
    """By what the short side is multiplied before a crop is taken; another size would be another depth."""
    most_of_one: float = Field(default=1.0, ge=1, le=1)
    """Off: depth has no classes."""
    inference: Literal["slide", "whole"] = "whole"
    """Whether a test picture is seen whole, or by windows two thirds of their side apart whose answers are averaged."""
    flip: bool = True
    """Whether a test picture is also seen with left and right exchanged, and the answers averaged."""

    @field_validator("unit")
    @classmethod
    def _is_known(cls, unit: str | None) -> str | None:
        return None if unit is None else known_unit(unit, name="it")

    @model_validator(mode="after")
    def _is_a_range(self) -> DepthConfig:
        if self.farthest is not None and self.farthest <= self.nearest:
            raise ValueError(f"nearest={self.nearest:g} must be below farthest={self.farthest:g}.")
        return self


def trunk_for(eyes: Eyes, config: DepthConfig) -> Trunk:
    """The backbone with the blocks that the head takes.

    Raises:
        ConfigError: It has not, or does not show, as many.
    """
    shown = len(eyes.backbone.module.blocks) if shows_blocks(eyes.backbone.module) else None
    if shown is None and (config.head != "linear" or not config.norm):
        raise ConfigError(
            f"depth.head={config.head}{'' if config.norm else ' depth.norm=false'} needs what blocks give; a backbone of "
            "another library shows its last one alone, after its norm. It takes depth.head=linear."
        )
    if config.head == "linear":
        return trunk_of(eyes, 1, norm=config.norm)
    if shown is not None and shown < _FOUR:
        raise ConfigError(
            f"depth.head={config.head} takes four blocks; the backbone has {shown}. It takes depth.head=linear."
        )
    return trunk_of(eyes, spread_blocks(shown or 0), norm=config.norm)


def first_head(trunk: Trunk, config: DepthConfig, limits: DepthRange) -> LinearDepth | DptDepth:
    """The released module of that name with first weights, a function of the seed alone.

    A linear one begins with weights N(0, 0.01) and biases 1, and so in the middle of the range with a slope for every bin:
    beginning at 0, bins that the first updates push below 0 would stay there. The decoder begins as torch makes convolutions,
    but for the last bias, by which it begins at the geometric mean of what is to be learnt: below 0 it would have no slope.
    """
    generator = torch_generator(config.seed, "depth head")
    if config.head != "dpt":
        linear = LinearDepth(trunk.width, trunk.count, _BINS)
        nn.init.normal_(linear.conv_depth.weight, std=_STD, generator=generator)
        nn.init.ones_(linear.conv_depth.bias)  # type: ignore[arg-type]
        return linear
    head = DptDepth(trunk.width)
    for module in head.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor):
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            if isinstance(bias, Tensor):
                nn.init.uniform_(bias, -bound, bound, generator=generator)
    last = head.conv_depth.head[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.constant_(last.bias, limits.middle - limits.nearest)  # type: ignore[arg-type]
    return head


def head_loss(
    trunk: Trunk, head: LinearDepth | DptDepth, lesson: Lesson, *, config: DepthConfig, limits: DepthRange
) -> Tensor:
    """What a lesson costs, over the pixels with a reading in the range; the map of cells is enlarged to these bilinearly."""
    truth = lesson.truth[:, None]
    valid = (truth > 0) & (truth <= limits.counted)
    # What the decoder tells is cut off at the far end only when it is used: beyond it there would be no slope.
    farthest = math.inf if isinstance(head, DptDepth) else limits.farthest
    cells = head(lesson.layers, nearest=limits.nearest, farthest=farthest)
    told = trunk.on_pixels(cells, truth.shape[-2], truth.shape[-1])
    warming = lesson.step < min(WARM_UP, _WARMING * config.iterations)
    value = scale_invariant_loss(told, truth, valid, warming=warming)
    if config.gradient_weight:
        value = value + config.gradient_weight * gradient_loss(told, truth, valid)
    return value


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that one measurement keeps to."""

    config: DepthConfig
    limits: DepthRange
    short_side: int
    window: int
    """Side, in pixels."""


def _measure(eyes: Eyes, sides: Sides, config: DepthConfig, *, save: Path | None = None) -> list[Score]:
    trunk = trunk_for(eyes, config)
    both, limits = measured_sides(
        sides, unit=config.unit, nearest=config.nearest, farthest=config.farthest, on_broken=eyes.on_broken
    )
    short_side = config.pixels or trunk.usual_side()
    if config.warmup is None:
        config = config.model_copy(update={"warmup": round(_RISING * config.iterations)})
    plan = _Plan(config, limits, short_side, config.window or short_side)
    head = first_head(trunk, config, limits).to(trunk.how.device)
    truths = Truths(TRUTH, 0.0, short_side, (plan.window, plan.window), torch.float32)
    lessons = lessons_of(trunk, both.known, truths, config, on_broken=eyes.on_broken)
    learn(
        head, lessons, partial(head_loss, trunk, head, config=config, limits=limits), config, betas=_BETAS, title=_TASK
    )
    how = _protocol(plan, trunk, images=len(both.known))
    if save is not None:
        save_head(save, head, _facts(eyes, trunk, both.known, plan, protocol=how))
    return _scores(trunk, head, both.asked, plan=plan, protocol=how, on_broken=eyes.on_broken)


def _scores(
    trunk: Trunk, head: LinearDepth | DptDepth, asked: Source, *, plan: _Plan, protocol: str,
    on_broken: Callable[[str, str], None],
) -> list[Score]:  # fmt: skip
    """The mean over test pictures of every measure.

    Raises:
        DataError: No reading in the range and the crop, or a picture that the crop is not for or that is too large.
    """
    config, limits, found, without = plan.config, plan.limits, list[dict[str, float]](), 0
    told = partial(head, nearest=limits.nearest, farthest=limits.farthest)
    viewing = Viewing.of(config, short_side=plan.short_side, window=plan.window)
    of, about = (aligned_errors, ALIGNED) if limits.unit == DISPARITY else (errors, MEASURES)
    pairs = usable_pairs(
        asked, TRUTH, reading(trunk.preprocessing), on_broken=on_broken, title=f"{_TASK} of {asked.address}"
    )
    for pair in pairs:
        height, width = pair.truth.shape
        valid = limits.valid(pair.truth) & inside(config.crop, height, width, name=f"a picture of {asked.address}")
        if not valid.any():
            without += 1
            continue
        depth = joined(
            trunk, told, pair.pixels, viewing, made=lambda told: told[0].clamp(limits.nearest, limits.farthest)
        )
        found.append(of(depth, pair.truth, valid))
    where = f"from {limits}{'' if config.crop == 'none' else f' in the crop {config.crop}'}"
    if not found:
        raise DataError(f"{asked.address} has no reading {where}.")
    if without:
        say(f"{asked.address}: {without:,} test pictures have no reading {where} and are left out.")
    return [
        Score(_TASK, name, float(values.mean()), about[name].unit, about[name].higher_is_better, len(values), protocol,
              interval=mean_interval(values))
        for name in about if (values := np.asarray([one[name] for one in found])) is not None
    ]  # fmt: skip


def _facts(eyes: Eyes, trunk: Trunk, known: Source, plan: _Plan, *, protocol: str) -> HeadFacts:
    """What is put down beside a head."""
    config, limits = plan.config, plan.limits
    return HeadFacts(
        kind="depth", family="dpt" if config.head == "dpt" else "linear", width=trunk.width, blocks=trunk.numbers,
        norm=trunk.norm, range=(limits.nearest, limits.farthest), unit=limits.unit, bins=_BINS, short_side=plan.short_side,
        window=plan.window if config.inference == "slide" else None, scales=config.scales, flip=config.flip,
        preprocessing=eyes.backbone.preprocessing, backbone=eyes.backbone.fingerprint, data=known.fingerprint,
        protocol=protocol,
    )  # fmt: skip


def _protocol(plan: _Plan, trunk: Trunk, *, images: int) -> str:
    config, weight = plan.config, plan.config.gradient_weight
    seen = "windows without augmentation" if config.augment == "none" else "random crops"
    loss = "scale-invariant loss" + (f" and {weight:g} times that of gradients" if weight else "")
    judged = "all pixels" if config.crop == "none" else f"pixels in the crop {config.crop}"
    return (
        f"{_WORDS[config.head]}{'' if trunk.norm else ' before the last norm'}, {plan.limits}; {config.iterations} updates of "
        f"{config.batch} {seen} of {plan.window} pixels, {loss}, AdamW {config.learning_rate:g}, {images} train pictures; "
        f"{viewed(config, short_side=plan.short_side, window=plan.window)}; mean over test pictures of what holds over their "
        f"{judged} with a reading in the range"
    )


DEPTH = Evaluation(DepthConfig, "depths", _measure, once=True, heads=True)
