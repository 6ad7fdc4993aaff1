"""Block-wise masks for iBOT (BEiT, Bao et al. 2022, algorithm 1; Zhou et al. 2022), drawn as DINOv2's training code draws them.

Axes: V views, H by W patches, N = H W.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool
from pydantic import AfterValidator, Field
from torch import Tensor

from dinoforge.base.config import Config

_TRIALS = 10


def _rising(ratio: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= ratio[0] <= ratio[1] <= 1:
        raise ValueError(
            f"data.masks.ratio must be two shares of the patches, 0 <= low <= high <= 1; got {list(ratio)}."
        )
    return ratio


class MaskConfig(Config):
    """Which patches are hidden from the student."""

    probability: float = Field(default=0.5, ge=0, le=1)
    """Share of the global views of a group of images that are masked at all, rounded down to whole views."""
    ratio: Annotated[tuple[float, float], AfterValidator(_rising)] = (0.1, 0.5)
    """Lowest and highest share of patches hidden in a masked view; each masked view of a group has its own bin between."""
    smallest_block: int = Field(default=4, gt=0)
    """Patches in the smallest block that is tried."""
    aspect: float = Field(default=0.3, gt=0, le=1)
    """A block's height over its width lies between this and its inverse."""
    exact: bool = True
    """Hide exactly the highest number of patches of each bin, so that every batch masks equally many and no shape changes
    (DINOv3); false: a number drawn in the bin, at times missed by a few (DINOv2, as its models were trained)."""


def block_mask(
    rng: random.Random, *, grid: tuple[int, int], target: int, largest: int, config: MaskConfig
) -> Bool[np.ndarray, "H W"]:
    """Cover ``target`` patches by random rectangles; sometimes a few less, never more.

    Up to ten rectangles are tried at a time; the first that covers something new and not too much is kept, and when all ten
    fail the mask stays as it is. With less than ``smallest_block`` patches to go, the area is drawn between them.

    Args:
        largest: Patches that one rectangle may add.
    """
    rows, columns = grid
    mask = np.zeros(grid, dtype=bool)
    low, high = math.log(config.aspect), math.log(1 / config.aspect)
    covered = 0
    while covered < target:
        left = min(target - covered, largest)
        for _ in range(_TRIALS):
            area = rng.uniform(config.smallest_block, left)
            aspect = math.exp(rng.uniform(low, high))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, side = rng.randint(0, rows - height), rng.randint(0, columns - width)
            block = mask[top : top + height, side : side + width]
            new = block.size - int(block.sum())
            if 0 < new <= left:
                block[...] = True
                covered += new
                break
        else:
            break
    return mask


def masked_views(views: int, config: MaskConfig) -> int:
    """How many of a group's global views are masked."""
    return int(views * config.probability)


def draw_masks(rng: random.Random, *, views: int, grid: tuple[int, int], config: MaskConfig) -> Bool[Tensor, "V N"]:
    """Masks for all global views of a group.

    ``masked_views`` of them are masked. Their ratios are stratified: the range is cut into as many bins, and each
    masked view draws its number of patches inside its own, or takes its upper end and fills up what the rectangles miss with
    single patches (``config.exact``). Which view gets which mask is shuffled.
    """
    rows, columns = grid
    masked = masked_views(views, config)
    edges = torch.linspace(*config.ratio, masked + 1).numpy()  # float32, as recorded
    masks = []
    for low, high in pairwise(edges):
        share = high if config.exact else low + (high - low) * np.float32(rng.random())
        target = int(rows * columns * share)
        mask = block_mask(rng, grid=grid, target=target, largest=rows // 2 * columns, config=config)
        masks.append(_filled(rng, mask, target) if config.exact else mask)
    masks += [np.zeros(grid, dtype=bool)] * (views - masked)
    rng.shuffle(masks)
    return torch.from_numpy(np.stack(masks).reshape(views, -1))


def _filled(rng: random.Random, mask: Bool[np.ndarray, "H W"], target: int) -> Bool[np.ndarray, "H W"]:
    """The mask with as many more patches, drawn one by one, as it is short of the target."""
    free = np.flatnonzero(~mask)
    full = mask.ravel()
    full[rng.sample(free.tolist(), target - int(full.sum()))] = True
    return full.reshape(mask.shape)
