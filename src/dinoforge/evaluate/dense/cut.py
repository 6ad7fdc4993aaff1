"""One cut of a picture and of its map of ground truth: what training and windows see, every pixel's origin known.

Axes: Y by X pixels of a picture, y by x of what is cut, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from pydantic import AfterValidator, Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.data.augment import Range, Share, resize
from dinoforge.evaluate.dense.distort import distorted
from dinoforge.evaluate.dense.truth import Pair

LONGEST = 4
"""Most times the long side may have the wanted short side (2048 to 512 in the published configurations)."""
_TRIALS = 10
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cut:
    """A window of a picture that was resized; where it reaches beyond, below or to the right, it is filled up."""

    size: Size
    """Rows and columns that the picture is resized to."""
    window: Size
    """Rows and columns of the window."""
    corner: Size = (0, 0)
    """First row and column of the resized picture that it shows."""
    mirrored: bool = False
    """Whether left and right are exchanged in the end."""

    def picture(self, pixels: UInt8[np.ndarray, "Y X C"], fill: Float[np.ndarray, " C"]) -> UInt8[Tensor, "C y x"]:
        """Its pixels, resized bicubic and antialiased.

        Args:
            fill: What stands where there is no picture, on the scale 0 to 255.
        """
        whole = resize(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), *self.size)
        (top, left), (tall, wide) = self.corner, self.window
        part = whole[:, top : top + tall, left : left + wide]
        found = torch.from_numpy(fill.round().astype(np.uint8))[:, None, None].expand(-1, tall, wide).clone()
        found[:, : part.shape[1], : part.shape[2]] = part
        return found.flip(-1) if self.mirrored else found

    def truth(self, values: Num[np.ndarray, "Y X"], fill: float) -> Num[np.ndarray, "y x"]:
        """Its map: that of the nearest pixel, never a mixture.

        Args:
            fill: What stands where there is no picture.
        """
        rows, columns = self.origin(values.shape[0], 0), self.origin(values.shape[1], 1)
        found = values[np.maximum(rows, 0)[:, None], np.maximum(columns, 0)[None]]
        beyond = (rows < 0)[:, None] | (columns < 0)[None]
        return np.where(beyond, np.asarray(fill, values.dtype), found) if beyond.any() else found

    def origin(self, length: int, axis: int) -> Int[np.ndarray, " n"]:
        """For every row (axis 0) or column (1) of the window the nearest one of a picture of so many; -1: there is none."""
        at = self.corner[axis] + np.arange(self.window[axis])
        # The middle of a pixel falls into the pixel of the original that covers it.
        source = ((2 * at + 1) * length) // (2 * self.size[axis])
        source = np.where(at < self.size[axis], source, -1)
        return source[::-1] if self.mirrored and axis == 1 else source


def resized_to(size: Size, short_side: float) -> Size:
    """Rows and columns of a picture in its own shape whose short side is so long; less where the long one would be over 4 times
    that."""
    height, width = size
    factor = min(short_side / min(height, width), LONGEST * short_side / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _ratios(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 16:
        raise ValueError(f"a picture is enlarged at most 16 times; got {list(pair)}.")
    return pair


Ratio = Annotated[Range, AfterValidator(_ratios)]
"""By what the short side of a picture is multiplied: two numbers, drawn uniformly between."""


class CropsConfig(Config):
    """Random crops of pictures and their maps (the published configurations for segmentation)."""

    ratio: Ratio = (0.5, 2.0)
    """By what the short side is multiplied before a crop is taken, drawn uniformly between the two."""
    most_of_one: float = Field(default=0.75, gt=0, le=1)
    """Share of a crop's known pixels that one class may have; of ten crops the first that keeps it is taken. 1 is off."""
    mirror: Share = 0.5
    """Probability that left and right are exchanged."""
    distort: bool = True
    """Whether brightness, contrast, saturation and hue change at random, each half of the time."""


def draw_cut(
    rng: np.random.Generator, truth: Num[np.ndarray, "Y X"], config: CropsConfig, *, short_side: int, window: Size,
    ignore: float,
) -> Cut:  # fmt: skip
    """A random crop: size by ratio, corner uniform, mirrored by chance."""
    ratio = rng.uniform(*config.ratio)
    size = resized_to((truth.shape[0], truth.shape[1]), short_side * ratio)
    mirrored = bool(rng.random() < config.mirror)
    cut = _somewhere(rng, size, window, mirrored)
    for _ in range(_TRIALS - 1):
        if config.most_of_one == 1 or _varied(cut.truth(truth, ignore), config.most_of_one, ignore):
            break
        cut = _somewhere(rng, size, window, mirrored)
    return cut


def _somewhere(rng: np.random.Generator, size: Size, window: Size, mirrored: bool) -> Cut:
    top, left = (int(rng.integers(max(whole - part, 0) + 1)) for whole, part in zip(size, window, strict=True))
    return Cut(size, window, (top, left), mirrored)


def _varied(truth: np.ndarray, most: float, ignore: float) -> bool:
    """Whether no class has more than its share of what is known."""
    _, counts = np.unique(truth[truth != ignore], return_counts=True)
    return len(counts) > 1 and bool(counts.max() < most * counts.sum())


def draw_crop(
    rng: np.random.Generator, pair: Pair, config: CropsConfig, *, short_side: int, window: Size, ignore: float,
    fill: Float[np.ndarray, " C"],
) -> tuple[UInt8[Tensor, "C y x"], Num[np.ndarray, "y x"]]:  # fmt: skip
    """A random crop of a picture and of its map.

    Args:
        short_side: Of the picture at ratio 1, in pixels.
        ignore: What the map says where nothing is known, and beyond the picture.
        fill: See ``Cut.picture``.
    """
    cut = draw_cut(rng, pair.truth, config, short_side=short_side, window=window, ignore=ignore)
    picture = cut.picture(pair.pixels, fill)
    return distorted(rng, picture) if config.distort else picture, cut.truth(pair.truth, ignore)
