"""Pictures of maps: the image, beside it its classes or its depth in colours, and what the colours mean.

Axes: Y by X pixels, C channels of an image, K classes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from dinoforge.report.film import visible
from dinoforge.report.tiles import fitted

SIDE = 768
"""Longer side of each of the two pictures, in pixels."""
_GAP, _LINE, _TEXT = 12, 22, 14
"""Pixels between parts, from one line of a legend to the next, and of its letters."""
_LEGEND, _BAR = 240, 110
"""Pixels across."""
_COLOUR = 0.6
"""Share of the class's colour where it lies over the image, of which the grey is kept: a green one would make red brown."""
_LINES = 24
"""Classes that a legend names at most."""
_TICKS = 5
_GOLDEN = 0.618034
_FLAT = 1e-6
"""Share of the depth below which its variation is rounding."""


def palette(count: int) -> list[tuple[int, int, int]]:
    """Colours that differ, always the same: hues a golden section apart, in three brightnesses."""
    colours = [
        colorsys.hsv_to_rgb(n * _GOLDEN % 1, (0.85, 0.6, 0.9)[n % 3], (1.0, 0.85, 0.6)[n % 3]) for n in range(count)
    ]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colours]


def classes_picture(
    image: UInt8[np.ndarray, "Y X C"], classes: Int[np.ndarray, "Y X"], *, names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> Image.Image:  # fmt: skip
    """The image, its classes laid over it, and a legend of those that it has, the largest first.

    Args:
        classes: The place of each pixel's class in ``names``.
    """
    shown = _image(image)
    painted = Image.fromarray(np.asarray(colours, np.uint8)[_reduced(classes, shown.size)])
    counts = np.bincount(classes.ravel(), minlength=len(names))
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    sheet = _sheet(
        shown, Image.blend(shown.convert("L").convert("RGB"), painted, _COLOUR), lines=min(len(order), _LINES + 1)
    )
    pen, left = ImageDraw.Draw(sheet), sheet.width - _GAP - _LEGEND
    for line, number in enumerate(order[:_LINES]):
        top = _GAP + line * _LINE
        pen.rectangle((left, top, left + 16, top + 16), fill=colours[number], outline="black")
        pen.text((left + 24, top), _short(names[number]), fill="black", font=_font())
        pen.text(
            (sheet.width - _GAP, top), _percent(counts[number] / classes.size), fill="black", font=_font(), anchor="ra"
        )
    if len(order) > _LINES:
        rest = counts[order[_LINES:]].sum() / classes.size
        told = f"{len(order) - _LINES} more: {_percent(rest)}"
        pen.text((left + 24, _GAP + _LINES * _LINE), told, fill="black", font=_font())
    return sheet


def depth_picture(image: UInt8[np.ndarray, "Y X C"], depth: Float[np.ndarray, "Y X"], *, unit: str) -> Image.Image:
    """The image, its depth in colours between its 1st and 99th hundredth, near ones bright, and a bar with the numbers."""
    shown = _image(image)
    near, far = (float(value) for value in np.quantile(_reduced(depth, shown.size), (0.01, 0.99)))
    if unit == "disparity":  # the larger the nearer
        near, far = far, near
    wide = far - near if abs(far - near) > _FLAT * abs(far) else max(_FLAT * abs(far), _FLAT)
    painted = Image.fromarray(_warm((_reduced(depth, shown.size) - near) / wide))
    sheet = _sheet(shown, painted, lines=_TICKS * 2, legend=_BAR)
    left, tall = sheet.width - _GAP - _BAR, sheet.height - 2 * _GAP - _LINE
    bar = np.repeat(np.linspace(0, 1, tall)[:, None], 24, axis=1)
    sheet.paste(Image.fromarray(_warm(bar)), (left, _GAP + _LINE))
    pen = ImageDraw.Draw(sheet)
    pen.text((left, _GAP - 4), unit, fill="black", font=_font())
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(near), abs(far), 1e-9)))))
    for tick in np.linspace(0, 1, _TICKS):
        at = _GAP + _LINE + round(tick * (tall - 1))
        pen.line((left + 24, at, left + 30, at), fill="black")
        pen.text((left + 36, at), f"{near + tick * wide:.{digits}f}", fill="black", font=_font(), anchor="lm")
    return sheet


def _warm(share: Float[np.ndarray, "y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """Colours from bright (0) to dark (1)."""
    from matplotlib import colormaps

    colours = np.asarray(colormaps["inferno_r"](share.clip(0, 1) * 0.95))
    return (colours[..., :3] * 255).round().astype(np.uint8)


def _image(image: UInt8[np.ndarray, "Y X C"]) -> Image.Image:
    """The image for the eye, in the size in which it is drawn."""
    seen = visible(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    return fitted(Image.fromarray(np.ascontiguousarray(seen.numpy())), SIDE)


def _reduced(values: Shaped[np.ndarray, "Y X"], size: tuple[int, int]) -> Shaped[np.ndarray, "y x"]:
    """A map in the size of a picture (width, height), each pixel that of the nearest one."""
    rows, columns = ((np.arange(n) + 0.5) * whole / n for n, whole in zip(size[::-1], values.shape, strict=True))
    return values[rows.astype(int)[:, None], columns.astype(int)[None]]


def _sheet(left: Image.Image, right: Image.Image, *, lines: int, legend: int = _LEGEND) -> Image.Image:
    """The two side by side, and room for a legend; pictures that are broad lie one above the other."""
    broad = left.width > 2 * left.height
    width = left.width * (1 if broad else 2) + (0 if broad else _GAP)
    height = left.height * (2 if broad else 1) + (_GAP if broad else 0)
    sheet = Image.new("RGB", (width + 3 * _GAP + legend, max(height, lines * _LINE) + 2 * _GAP), "white")
    sheet.paste(left, (_GAP, _GAP))
    sheet.paste(right, (_GAP, 2 * _GAP + left.height) if broad else (2 * _GAP + left.width, _GAP))
    return sheet


@lru_cache(1)
def _font() -> ImageFont.FreeTypeFont:
    """That of matplotlib, which has more letters than Pillow's own."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _TEXT)


def _short(name: str) -> str:
    """A name that fits into the legend beside its share."""
    room = _LEGEND - 24 - _GAP - 64
    while name and _font().getlength(name) > room:
        name = name[:-2].rstrip() + "…" if len(name) > 2 else ""
    return name


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
