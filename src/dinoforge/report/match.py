"""Two pictures side by side, with a line for every match; see ``features/matching.py``.

Axes: Y by X pixels of the first image, y by x of the second.
"""

from __future__ import annotations

import base64
import colorsys
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from dinoforge.base.files import write_text
from dinoforge.features.matching import Matches
from dinoforge.report.tiles import fitted, png, write_png

_SIDE = 512
"""Longer side of each picture that matches are drawn on, in pixels."""
_MIDDLE = 24
"""Pixels between the two."""


def match_picture(
    path: Path, images: tuple[UInt8[Tensor, "3 Y X"], UInt8[Tensor, "3 y x"]], matches: Matches, *, patch: int
) -> None:
    """Write the two images side by side with a line for every match, as SVG or PNG by the name of the file.

    Args:
        patch: Side of a patch in pixels of the images.
    """
    pictures = [fitted(Image.fromarray(image.permute(1, 2, 0).numpy()), _SIDE) for image in images]
    scales = [picture.width / image.shape[2] * patch for picture, image in zip(pictures, images, strict=True)]
    shift = pictures[0].width + _MIDDLE
    lines = [
        ((a[1] + 0.5) * scales[0], (a[0] + 0.5) * scales[0], (b[1] + 0.5) * scales[1] + shift, (b[0] + 0.5) * scales[1])
        for a, b in zip(matches.first.tolist(), matches.second.tolist(), strict=True)
    ]
    size = (shift + pictures[1].width, max(picture.height for picture in pictures))
    colours = [_colour(number, len(lines)) for number in range(len(lines))]
    if path.suffix.lower() == ".svg":
        write_text(path, _svg(pictures, shift, size, lines, colours))
    else:
        write_png(path, _drawn(pictures, shift, size, lines, colours))


Line = tuple[float, float, float, float]


def _colour(number: int, of: int) -> str:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number / max(of, 1), 0.75, 1.0))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _svg(pictures: list[Image.Image], shift: int, size: tuple[int, int], lines: list[Line], colours: list[str]) -> str:
    width, height = size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Two images and {len(lines)} matching patches">'
    ]
    for left, picture in zip((0, shift), pictures, strict=True):
        data = base64.b64encode(png(picture)).decode()
        parts.append(
            f'<image x="{left}" y="0" width="{picture.width}" height="{picture.height}" '
            f'href="data:image/png;base64,{data}"/>'
        )
    for (x, y, u, v), colour in zip(lines, colours, strict=True):
        parts.append(f'<path d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}" stroke="{colour}" stroke-width="2.5"/>')
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="{colour}" stroke="#000"/>' for a, b in ((x, y), (u, v))
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(
    pictures: list[Image.Image], shift: int, size: tuple[int, int], lines: list[Line], colours: list[str]
) -> Image.Image:
    """Drawn at twice the size and reduced, which smooths the lines."""
    canvas = Image.new("RGB", (2 * size[0], 2 * size[1]), "white")
    for left, picture in zip((0, shift), pictures, strict=True):
        canvas.paste(picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC), (2 * left, 0))
    pen = ImageDraw.Draw(canvas)
    for line, colour in zip(lines, colours, strict=True):
        x, y, u, v = (2 * part for part in line)
        pen.line((x, y, u, v), fill=colour, width=5)
        for a, b in ((x, y), (u, v)):
            pen.ellipse((a - 10, b - 10, a + 10, b + 10), fill=colour, outline="black", width=2)
    return canvas.resize(size, Image.Resampling.LANCZOS)
