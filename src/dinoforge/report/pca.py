"""Pictures of patch features, see ``features/parts.py``, under the images that they are of.

Axes: B images, H by W patches, D channels, Y by X pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dinoforge.features.parts import maps
from dinoforge.report.tiles import sheet, write_png


def pca_picture(path: Path, images: UInt8[Tensor, "B 3 Y X"], rows: Mapping[str, Float[Tensor, "B H W D"]]) -> None:
    """Write a PNG: the images in the first row, under them a row of maps for every named set of patch features."""
    lines = [[Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]]
    lines += [[Image.fromarray(picture) for picture in maps(patches)] for patches in rows.values()]
    write_png(path, sheet(lines))
