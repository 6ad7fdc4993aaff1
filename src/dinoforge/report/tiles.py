"""Sheets of small pictures, and pictures as bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dinoforge.base.files import write_atomic

_GAP = 4
"""Pixels between tiles."""


def sheet(lines: Sequence[Sequence[Image.Image]], *, side: int = 128) -> Image.Image:
    """Rows of pictures on white, each fitted into a square of ``side`` pixels.

    Pictures are smoothed; maps, which have fewer pixels than half a tile, keep their patches sharp.
    """
    step = side + _GAP
    columns = max(map(len, lines))
    canvas = Image.new("RGB", (columns * step + _GAP, len(lines) * step + _GAP), "white")
    for row, pictures in enumerate(lines):
        for column, picture in enumerate(pictures):
            tile = fitted(picture, side)
            left = _GAP + column * step + (side - tile.width) // 2
            canvas.paste(tile, (left, _GAP + row * step + (side - tile.height) // 2))
    return canvas


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side scaled to ``side`` pixels."""
    longest = max(picture.size)
    width, height = (max(1, round(length * side / longest)) for length in picture.size)
    sharp = longest < side / 2
    return picture.convert("RGB").resize(
        (width, height), Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC
    )


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a PNG file, whole or not at all.

    Raises:
        RunError: It cannot be written.
    """
    data = png(picture)
    write_atomic(path, lambda file: file.write(data))
