"""Which patches of two images belong together: mutual nearest neighbours, the salient ones, far enough apart to be read.

The qualitative matching of DINOv2 (sec. 7.5) solves an assignment problem; mutual neighbours need none, and leave out what has
no partner.

Axes: H by W patches of the first image, h by w of the second, D channels, n matches, Y by X pixels.
"""

from __future__ import annotations

import base64
import colorsys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from dinoforge.base.config import Config
from dinoforge.base.files import write_text
from dinoforge.report.pca import foreground
from dinoforge.report.tiles import fitted, png, write_png


class MatchConfig(Config):
    """Which matches are shown."""

    matches: int = Field(default=16, gt=0)
    """At most so many, the most salient first."""
    radius: float = Field(default=1.5, ge=0)
    """A match is dropped where a more salient one lies this near, in patches, in either image (non-maximum suppression)."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Pairs of patches, most salient first; positions are (row, column)."""

    first: Int[Tensor, "n 2"]
    second: Int[Tensor, "n 2"]
    similarity: Float[Tensor, " n"]
    """Cosine."""
    salience: Float[Tensor, " n"]
    """By how much the cosine is above that of the best other place, not beside it, in either image."""


def match(
    first: Float[Tensor, "H W D"], second: Float[Tensor, "h w D"], *, config: MatchConfig | None = None
) -> Matches:
    """Patches that are each other's nearest neighbour by cosine, both in the foreground where there is one.

    Patches within ``radius`` of a partner look like it and say nothing against it, so they do not count as its rivals.
    """
    settings = config or MatchConfig()
    grids = (first.shape[:2], second.shape[:2])
    places = [_places(grid) for grid in grids]
    similarity = F.normalize(first.float().flatten(0, 1), dim=-1) @ F.normalize(second.float().flatten(0, 1), dim=-1).T
    there, back = similarity.max(1), similarity.max(0)
    rows = torch.arange(len(similarity))
    mutual = back.indices[there.indices] == rows
    front = [part.flatten() for part in _foregrounds(first, second)]
    one = (mutual & front[0] & front[1][there.indices]).nonzero().flatten()
    two = there.indices[one]
    best = similarity[one, two]
    rival = torch.maximum(
        _best_elsewhere(similarity[one], places[1], two, radius=settings.radius),
        _best_elsewhere(similarity.T[two], places[0], one, radius=settings.radius),
    )
    salience = best - rival
    order = salience.argsort(descending=True, stable=True)
    kept = _apart(places[0][one[order]], places[1][two[order]], settings)
    chosen = order[kept]
    return Matches(places[0][one[chosen]], places[1][two[chosen]], best[chosen], salience[chosen])


def _places(grid: torch.Size) -> Int[Tensor, "n 2"]:
    return torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).view(-1, 2)


def _foregrounds(
    first: Float[Tensor, "H W D"], second: Float[Tensor, "h w D"]
) -> tuple[Bool[Tensor, "H W"], Bool[Tensor, "h w"]]:
    """The foreground of the two together; everything where either has none."""
    if first.shape == second.shape:
        both = foreground(torch.stack([first, second]))
        one, two = both[0], both[1]
    else:
        one, two = foreground(first.unsqueeze(0))[0], foreground(second.unsqueeze(0))[0]
    if one.any() and two.any():
        return one, two
    return torch.ones_like(one), torch.ones_like(two)


def _best_elsewhere(
    similarity: Float[Tensor, "n N"], places: Int[Tensor, "N 2"], partner: Int[Tensor, " n"], *, radius: float
) -> Float[Tensor, " n"]:
    """The largest similarity of each row away from its partner; -1, the smallest cosine, where nothing is away."""
    near = torch.cdist(places[partner].float(), places.float()) <= radius
    return similarity.masked_fill(near, -1.0).amax(1)


def _apart(first: Int[Tensor, "n 2"], second: Int[Tensor, "n 2"], settings: MatchConfig) -> Int[Tensor, " m"]:
    """Which of the matches, best first, stay when each silences those near it."""
    kept: list[int] = []
    for number in range(len(first)):
        if len(kept) == settings.matches:
            break
        gaps = [torch.linalg.vector_norm((side[kept] - side[number]).float(), dim=1) for side in (first, second)]
        if not kept or min(gap.min().item() for gap in gaps) > settings.radius:
            kept.append(number)
    return torch.tensor(kept, dtype=torch.long)


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
