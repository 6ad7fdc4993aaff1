"""``correspondence``: points of one picture found in another that shows the same, by patch features alone.

A point takes the features of the patches around it, bilinear between their middles; where it is in the other picture is the
middle of the patch with the greatest cosine. PCK (percentage of correct keypoints; Yang & Ramanan 2013) counts those within
a share alpha of the larger side of the object's box in the other picture, as SPair-71k does (Min et al. 2019, sec. 4), or of
the picture itself.

Axes: P pairs, K points of one, H by W patches of the first picture, h by w of the second, D channels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.random import numpy_generator
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.keypoints import Chosen, Pair, drawn_pairs, listed_pairs, lists_pairs, outside, pair_of
from dinoforge.evaluate.lists import listed, rising
from dinoforge.evaluate.score import Score, shared_interval
from dinoforge.features.extract import NoneUsable
from dinoforge.features.eyes import Eyes
from dinoforge.features.views import View, longest

_TASK = "correspondence"
_DRAWN = 1000
"""Pairs that are drawn where none are listed and no number is given."""
_HELD = 1 << 27
"""Numbers of patch features that stay in memory, half a gigabyte: pictures come again in other pairs."""

Alphas = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), BeforeValidator(listed), AfterValidator(rising)
]


class CorrespondenceConfig(Config):
    """Which pairs are asked for, how they are seen and matched, and what counts as found."""

    longest: int = Field(default=840, gt=0)
    """Whole pictures are seen, their long side so many pixels: 60 patches of 14."""
    alpha: Alphas = (0.05, 0.1, 0.2)
    """A point is found within this share of the side; a score for each. SPair-71k reports 0.1."""
    relative_to: Literal["box", "image"] = "box"
    """Whose larger side: that of the object's box in the second picture, or that of the picture."""
    window: int = Field(default=0, ge=0)
    """Patches around the best one, each way, whose middles are averaged by softmax(cosine / temperature): a place between
    patches. 0 takes the best one's middle."""
    temperature: float = Field(default=0.05, gt=0)
    """Of that softmax."""
    by: Literal["group", "label"] = "group"
    """Two pictures are a pair where this column is equal; of no effect where the source lists its pairs."""
    pairs: Count | None = Field(default=None, gt=0)
    """Most pairs, drawn where there are more; null: all that are listed, or 1,000 drawn."""
    seed: int = Field(default=0, ge=0)
    """Of the draw."""

    @model_validator(mode="after")
    def _temperature_is_used(self) -> CorrespondenceConfig:
        if not self.window and self.temperature != type(self).model_fields["temperature"].default:
            raise ValueError(f"temperature={self.temperature} has no effect with window=0, which takes one patch.")
        return self


def matched(
    first: Float[Tensor, "H W D"], second: Float[Tensor, "h w D"], points: Float[Tensor, "K 2"], *,
    window: int = 0, temperature: float = 0.05,
) -> Float[Tensor, "K 2"]:  # fmt: skip
    """Where in the second picture points of the first are found; x and y in shares of width and height, from 0 to 1.

    Args:
        window, temperature: See ``CorrespondenceConfig``.
    """
    at = (points * 2 - 1)[None, :, None]
    mine = F.grid_sample(first.permute(2, 0, 1)[None], at, padding_mode="border", align_corners=False)[0, :, :, 0].T
    height, width = second.shape[:2]
    cosine = F.normalize(mine, dim=-1) @ F.normalize(second, dim=-1).flatten(0, 1).T
    best = cosine.argmax(-1, keepdim=True)
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    near = ((row - best // width).abs() <= window) & ((column - best % width).abs() <= window)
    weights = (cosine / temperature).masked_fill(~near, -torch.inf).softmax(-1)
    return weights @ torch.stack([(column + 0.5) / width, (row + 0.5) / height], dim=-1)


def within(
    found: Float64[np.ndarray, "K 2"], true: Float64[np.ndarray, "K 2"], *, reach: float
) -> Bool[np.ndarray, " K"]:
    """Which points are found no farther than ``reach`` from where they are."""
    close: np.ndarray = np.linalg.norm(found - true, axis=1) <= reach
    return close


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture."""

    patches: Float[Tensor, "H W D"]
    size: tuple[int, int]
    """Its width and height, in pixels."""


class _Album:
    """Pictures of a source one at a time; those seen last stay in memory."""

    def __init__(self, eyes: Eyes, source: Source, view: View) -> None:
        self._eyes, self._source, self._view = eyes, source, view
        self._held, self._numbers, self._lost = OrderedDict[int, _Seen](), 0, set[int]()

    def look(self, row: int) -> _Seen | None:
        """A picture, None where it cannot be used."""
        if row in self._lost:
            return None
        if row in self._held:
            self._held.move_to_end(row)
            return self._held[row]
        try:
            patches = self._eyes.look(
                self._source.select(np.asarray([row])), "patches", view=self._view, remember=False
            )
        except NoneUsable:
            self._lost.add(row)
            return None
        picture = self._source.picture(row)
        self._held[row] = seen = _Seen(patches.values[0], (picture.width, picture.height))
        self._numbers += seen.patches.numel()
        while self._numbers > _HELD and len(self._held) > 2:
            self._numbers -= self._held.popitem(last=False)[1].patches.numel()
        return seen


def chosen_pairs(source: Source, config: CorrespondenceConfig) -> list[Chosen]:
    """The pairs that are asked for, those with the same pictures near one another.

    Raises:
        ConfigError: ``by`` is given where pairs are listed.
        DataError: There are none, or what is said of them is damaged.
    """
    if not lists_pairs(source):
        return drawn_pairs(source, by=config.by, count=config.pairs or _DRAWN, seed=config.seed)
    if config.by != "group":
        raise ConfigError(f"correspondence.by={config.by} has no effect: {source.address} lists its pairs.")
    found = listed_pairs(source)
    if config.pairs is not None and config.pairs < len(found):
        rows = numpy_generator(config.seed, "pairs").choice(len(found), config.pairs, replace=False)
        found = [found[row] for row in sorted(rows.tolist())]
    label = source.columns.get("label", np.zeros(len(source), np.int64))
    return sorted(found, key=lambda pair: (label[pair.first], pair.first))


def _measure(eyes: Eyes, sides: Sides, config: CorrespondenceConfig) -> list[Score]:
    source = sides.asked
    album = _Album(eyes, source, longest(config.longest, patch=eyes.backbone.module.patch))
    pairs = chosen_pairs(source, config)
    hits, asked, bare, lost = list[np.ndarray](), list[tuple[int, int]](), 0, 0
    for chosen in pairs:
        pair = pair_of(source, chosen, boxes=config.relative_to == "box")
        if not len(pair.points):
            bare += 1
            continue
        first, second = album.look(pair.first), album.look(pair.second)
        if first is None or second is None:
            lost += 1
            continue
        hits.append(_hits(source, pair, first, second, config))
        asked.append((pair.first, pair.second))
    if not hits:
        raise DataError(
            f"none of {len(pairs)} pairs of {source.address} can be asked for: {bare} have no keypoint that both pictures "
            f'show (a column keypoints, {{"name": [x, y]}} as JSON, says where they are), {lost} a picture that cannot be used.'
        )
    return _scores(
        hits,
        np.asarray(asked),
        config,
        f"{bare} pairs without common keypoints and {lost} with a broken picture left out",
    )


def _hits(source: Source, pair: Pair, first: _Seen, second: _Seen, config: CorrespondenceConfig) -> np.ndarray:
    """Which points are found at every alpha, ``[A K]``.

    Raises:
        DataError: A point lies outside its picture.
    """
    for row, seen, points in zip(
        (pair.first, pair.second), (first, second), pair.points.transpose(1, 0, 2), strict=True
    ):
        odd = outside(points, size=seen.size)
        if len(odd):
            raise DataError(
                f"{source.columns['id'][row]} has a keypoint at {tuple(points[odd[0]].tolist())}, outside its "
                f"{seen.size[0]}x{seen.size[1]} pixels."
            )
    share = torch.from_numpy(pair.points[:, 0] / np.asarray(first.size)).float()
    found = matched(first.patches, second.patches, share, window=config.window, temperature=config.temperature)
    side = max(second.size) if pair.side is None else pair.side
    at = found.double().numpy() * np.asarray(second.size)
    return np.stack([within(at, pair.points[:, 1], reach=alpha * side) for alpha in config.alpha])


def _scores(
    hits: list[np.ndarray], pairs: Int[np.ndarray, "P 2"], config: CorrespondenceConfig, left: str
) -> list[Score]:
    """At every alpha the mean over pairs of each one's share, and the share of all points.

    Args:
        pairs: Rows of the two pictures.
    """
    of = "the object's box" if config.relative_to == "box" else "the picture"
    place = "the best patch's middle"
    if config.window:
        place = f"softmax of cosines / {config.temperature:g} within {config.window} patches of the best"
    how = (
        f"long side {config.longest}, {place}, found within alpha times the larger side of {of}; mean over pairs of each one's "
        f"share, per_keypoint the share of all, intervals over pictures; {left}"
    )
    counts = np.asarray([one.shape[1] for one in hits], np.float64)
    found = []
    for alpha, right in zip(
        config.alpha, np.stack([one.sum(1) for one in hits], axis=1).astype(np.float64), strict=True
    ):
        share, name, total = right / counts, f"PCK_at_{alpha:g}", int(counts.sum())
        spreads = shared_interval(share, np.ones(len(share)), pairs), shared_interval(right, counts, pairs)
        pooled = float(right.sum() / total)
        found += [
            Score(_TASK, name, float(share.mean()), "fraction", True, len(hits), how, interval=spreads[0]),
            Score(_TASK, f"{name}_per_keypoint", pooled, "fraction", True, total, how, interval=spreads[1]),
        ]
    return found


CORRESPONDENCE = Evaluation(
    CorrespondenceConfig, "asked", _measure, check=lambda sides, config: chosen_pairs(sides.asked, config), once=True
)
