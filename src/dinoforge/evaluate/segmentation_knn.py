"""``segmentation_knn``: patches of labelled pictures vote for the classes of others' patches. Nothing is trained.

Axes: N patches of the bank, Q queries, D channels, K classes, B pictures, H by W patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from dinoforge.base.config import Count
from dinoforge.base.errors import DataError
from dinoforge.base.random import numpy_generator
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.dense.cut import Cut, resized_to
from dinoforge.evaluate.dense.infer import ViewingConfig, viewed
from dinoforge.evaluate.dense.labels import Ignored, MaskClasses, labelled_sides
from dinoforge.evaluate.dense.told import measured
from dinoforge.evaluate.dense.trunk import Trunk, margins, trunk_of
from dinoforge.evaluate.dense.truth import Pair, usable_pairs
from dinoforge.evaluate.evaluation import Evaluation, Sides
from dinoforge.evaluate.knn import nearest_in
from dinoforge.evaluate.score import Score
from dinoforge.features.extract import reading
from dinoforge.features.eyes import Eyes
from dinoforge.model.features import Features


class SegmentationKnnConfig(ViewingConfig):
    """The vote of patches."""

    neighbours: int = Field(default=20, gt=0)
    """Patches that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """A neighbour's vote weighs ``exp(cosine / temperature)``."""
    votes: Literal["shares", "majority"] = "shares"
    """What a patch votes for: every class by the share of its pixels in the patch, or the commonest class alone."""
    bank: Count = Field(default=100_000, gt=0)
    """Patches that vote at most, as many of each picture, drawn by the seed; where there are more pictures, one of so many."""
    window: int | None = Field(default=None, gt=0, le=8192)
    """Side of a window, in pixels; null: the short side of a picture."""
    classes: int | None = Field(default=None, ge=2)
    """Number of classes; null: those that classes.json beside the images names, else the highest number in a mask, and 1."""
    ignore: Ignored | None = None
    """Number in masks where nothing is known; null: what classes.json says, else 255."""
    rows_at_once: int = Field(default=1024, gt=0)
    """Patches asked in one go; bounds memory, changes no result."""
    seed: int = Field(default=0, ge=0)
    """Of the patches that are drawn."""

    @model_validator(mode="after")
    def _windows_are_seen(self) -> SegmentationKnnConfig:
        if self.window is not None and self.inference == "whole":
            raise ValueError(f"window={self.window} has no effect with inference=whole; take inference=slide.")
        return self


def cell_shares(
    truth: Int[np.ndarray, "Y X"], classes: MaskClasses, *, grid: tuple[int, int]
) -> Float[np.ndarray, "H W K"]:
    """The share of every class in the known pixels of each cell of a grid; all 0 where none is."""
    rows, columns = grid
    down, across = (np.arange(length) * count // length for length, count in zip(truth.shape, grid, strict=True))
    cell = down[:, None] * columns + across
    known = truth != classes.ignore
    place = cell[known] * len(classes) + truth[known].astype(np.int64)
    counts = np.bincount(place, minlength=rows * columns * len(classes)).reshape(rows, columns, len(classes))
    return counts / np.maximum(counts.sum(-1, keepdims=True), 1)


class Voters:
    """Patches of labelled pictures, with the shares of the classes in each; from patches to votes for every class.

    Raises:
        DataError: No patch has a known pixel.
    """

    def __init__(
        self, trunk: Trunk, known: Source, classes: MaskClasses, config: SegmentationKnnConfig, *, short_side: int,
        on_broken: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._config, each = config, max(1, config.bank // len(known))
        patches, shares = list[Tensor](), list[Tensor]()
        how = reading(trunk.preprocessing)
        for number, pair in enumerate(
            usable_pairs(known, "mask", how, on_broken=on_broken, title=f"patches of {known.address}")
        ):
            found, of = _patches(trunk, pair, classes, short_side=short_side)
            usable = np.flatnonzero(of.sum(1) > 0)
            rng = numpy_generator(config.seed, "voting patches", number)
            chosen = np.sort(rng.choice(usable, min(each, len(usable)), replace=False))
            patches.append(found[torch.from_numpy(chosen)])
            shares.append(torch.from_numpy(of[chosen]))
        self._patches, self._shares = torch.cat(patches), torch.cat(shares)
        if len(self._patches) > config.bank:  # fewer than pictures
            rng = numpy_generator(config.seed, "voting pictures")
            drawn = torch.from_numpy(np.sort(rng.choice(len(self._patches), config.bank, replace=False)))
            self._patches, self._shares = self._patches[drawn], self._shares[drawn]
        self._shares = self._shares.float().to(trunk.how.device)
        if not len(self._patches):
            raise DataError(f"no patch of {known.address} has a pixel whose class is known.")
        if config.votes == "majority":
            self._shares = F.one_hot(self._shares.argmax(1), len(classes)).float()
        self._patches = self._patches.to(trunk.how.device)

    def __len__(self) -> int:
        return len(self._patches)

    def __call__(self, layers: Sequence[Features]) -> Float[Tensor, "B K H W"]:
        """What the nearest patches give to every class; 1 in all."""
        patches = layers[-1].patches
        config = self._config
        similarity, rows = nearest_in(
            patches.flatten(0, 2), self._patches, count=config.neighbours, rows_at_once=config.rows_at_once
        )
        weight = (similarity / config.temperature).softmax(-1)
        votes = [
            torch.einsum("qk,qkc->qc", some, self._shares[near])
            for some, near in zip(weight.split(config.rows_at_once), rows.split(config.rows_at_once), strict=True)
        ]
        return torch.cat(votes).unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)


def _patches(
    trunk: Trunk, pair: Pair, classes: MaskClasses, *, short_side: int
) -> tuple[Float[Tensor, "N D"], Float[np.ndarray, "N K"]]:
    """All patches of a picture, on the processor, and what is in each."""
    size = resized_to((pair.truth.shape[0], pair.truth.shape[1]), short_side)
    cut = Cut(size, size)
    found = trunk(cut.picture(pair.pixels, trunk.fill)[None])[-1].patches[0].cpu()
    around = [margins(length, trunk.patch) for length in size]
    truth = np.pad(cut.truth(pair.truth, classes.ignore).astype(np.int64), around, constant_values=classes.ignore)
    rows, columns, _ = found.shape
    return found.flatten(0, 1), cell_shares(truth, classes, grid=(rows, columns)).reshape(rows * columns, -1)


def _measure(eyes: Eyes, sides: Sides, config: SegmentationKnnConfig) -> list[Score]:
    both, classes = labelled_sides(sides, classes=config.classes, ignore=config.ignore, on_broken=eyes.on_broken)
    trunk = trunk_of(eyes, 1)
    short_side = config.pixels or trunk.usual_side()
    window = config.window or short_side
    voters = Voters(trunk, both.known, classes, config, short_side=short_side, on_broken=eyes.on_broken)
    protocol = (
        f"k={config.neighbours}, temperature {config.temperature}, cosine, votes by {config.votes} of {len(voters)} patches "
        f"of {len(both.known)} train pictures, {len(classes)} classes; "
        f"{viewed(config, short_side=short_side, window=window)}"
    )
    return measured(
        trunk, voters, both.asked, classes, config, task="segmentation_knn", short_side=short_side, window=window,
        protocol=protocol,
    )  # fmt: skip


SEGMENTATION_KNN = Evaluation(SegmentationKnnConfig, "masks", _measure, once=True)
