"""What of a picture a frozen backbone is shown.

Axes: Y by X pixels of a picture, y by x of what is seen, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dinoforge.base.errors import ConfigError
from dinoforge.base.random import numpy_generator
from dinoforge.data.augment import centre, crop_box, resize, squeezed
from dinoforge.model.weights import Preprocessing


@dataclass(frozen=True, slots=True)
class View:
    """From decoded pixels to those that are seen."""

    name: str
    """Everything that determines it, in words: features that are kept are looked up by it."""
    of: Callable[[UInt8[np.ndarray, "Y X C"], int], UInt8[Tensor, "C y x"]]
    """Of a picture's pixels and its row in the source."""


def middle(how: Preprocessing) -> View:
    """What the preprocessing says: the short side resized, the square in the middle."""
    return View(
        f"short side {how.short_side}, middle {how.side}",
        lambda pixels, _: centre(pixels, short_side=how.short_side, side=how.side),
    )


def tight(how: Preprocessing) -> View:
    """The middle square as large as it can be: the short side is resized to the square's (for logistic regression)."""
    return middle(how.model_copy(update={"short_side": how.side}))


def squeezed_whole(how: Preprocessing) -> View:
    """All of a picture, made a square; see ``squeezed``."""
    return View(f"all squeezed to {how.side}", lambda pixels, _: squeezed(pixels, side=how.side))


_SCALE, _ASPECT, _FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5


def cropped(how: Preprocessing, *, seed: int, number: int) -> View:
    """A random part of a picture, 8 to 100 % of its area, as a square, mirrored half of the time: what linear heads learn from.

    Args:
        number: Of the pass; every pass sees other parts.
    """

    def see(pixels: np.ndarray, row: int) -> Tensor:
        rng = numpy_generator(seed, "crop to learn from", number, row)
        height, width = pixels.shape[:2]
        top, left, tall, wide = crop_box(rng, height=height, width=width, scale=_SCALE, aspect=_ASPECT)
        part = np.ascontiguousarray(pixels[top : top + tall, left : left + wide])
        found = resize(torch.from_numpy(part).permute(2, 0, 1), how.side, how.side)
        return found.flip(-1) if rng.random() < _FLIP else found

    return View(f"crops to {how.side}, seed {seed}, pass {number}", see)


def longest(pixels: int, *, patch: int) -> View:
    """All of a picture in its own shape, the long side resized to so many pixels, either to a multiple of the patch.

    Raises:
        ConfigError: Fewer pixels than a patch has.
    """
    return _whole("long", pixels, patch, max)


def shortest(pixels: int, *, patch: int) -> View:
    """All of a picture in its own shape, the short side resized to so many pixels, either to a multiple of the patch.

    Raises:
        ConfigError: Fewer pixels than a patch has.
    """
    return _whole("short", pixels, patch, min)


def _whole(which: str, pixels: int, patch: int, of: Callable[[int, int], int]) -> View:
    if pixels < patch:
        raise ConfigError(f"a {which} side of {pixels} pixels is less than a patch of {patch}.")

    def see(image: np.ndarray, _: int) -> Tensor:
        height, width = image.shape[:2]
        scale = pixels / of(height, width)
        sides = [max(1, round(side * scale / patch)) * patch for side in (height, width)]
        return resize(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), *sides)

    return View(f"{which} side {pixels}, sides multiples of {patch}", see)
