"""A map for every pixel of a picture of any size: whole or by windows, at several scales, mirrored too.

Axes: K channels of a map, Y by X pixels of a picture, y by x of a resized one, B windows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.evaluate.dense.cut import Size
from dinoforge.evaluate.lists import listed, once
from dinoforge.model.features import Features

MapHead = Callable[[Sequence[Features]], Tensor]
"""From the features of the blocks of B images to ``[B K h w]``, any number of cells a patch."""
Scales = Annotated[
    tuple[Annotated[float, Field(gt=0, le=8)], ...],
    Field(min_length=1), BeforeValidator(listed), AfterValidator(once),
]  # fmt: skip
STRIDE = 2 / 3
"""Of a window, from one to the next (341 of 512 pixels in the published configurations)."""


class ViewingConfig(Config):
    """How a picture is looked at."""

    pixels: int | None = Field(default=None, gt=0, le=8192)
    """Short side that pictures are resized to, in pixels; null: the side that the backbone is usually shown."""
    inference: Literal["slide", "whole"] = "slide"
    """Whether a picture larger than a window is seen by windows, two thirds of their side apart, whose answers are averaged,
    or whole."""
    scales: Scales = (1.0,)
    """Sizes, relative to ``pixels``, at which a test picture is seen; the answers are averaged."""
    flip: bool = False
    """Whether a test picture is also seen with left and right exchanged, and the answers averaged."""


def windows(size: Size, window: Size) -> Iterator[Size]:
    """Corners of windows that cover a size: a stride apart, the last ones moved back to the edge."""
    rows, columns = (
        starts(length, part, max(1, int(part * STRIDE))) for length, part in zip(size, window, strict=True)
    )
    for top in rows:
        for left in columns:
            yield top, left


def starts(length: int, part: int, stride: int) -> list[int]:
    """Where windows begin that cover a length, a stride apart, the last one moved back to the edge; 0 where one is enough."""
    count = max(length - part + stride - 1, 0) // stride + 1
    return [max(min(number * stride, length - part), 0) for number in range(count)]


def viewed(config: ViewingConfig, *, short_side: int, window: int) -> str:
    """How test pictures were looked at, in words."""
    by = f"windows of {window}" if config.inference == "slide" else "whole"
    scales = f", scales {', '.join(f'{scale:g}' for scale in config.scales)}" if config.scales != (1.0,) else ""
    return f"short side {short_side}, {by}{scales}{', mirrored too' if config.flip else ''}"
