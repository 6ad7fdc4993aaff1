"""Pictures of patch features: their first three principal components as red, green and blue.

Axes: B images, H by W patches, D channels, Y by X pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dinoforge.base.files import write_atomic


def components(patches: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W 3"]:
    """The three directions of largest variance over all images, each stretched to 0–1 between its 1st and 99th hundredth.

    The sign of a component is chosen so that its larger tail is bright, which makes pictures comparable.
    """
    flat = patches.flatten(0, 2).double()
    flat = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    main = flat @ vectors[:, -3:].flip(1)
    main = main * torch.where((main**3).sum(0) < 0, -1.0, 1.0)
    low, high = torch.quantile(main[:: max(1, len(main) // 100_000)], torch.tensor([0.01, 0.99]).double(), dim=0)
    return ((main - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float().view(*patches.shape[:3], 3)


def pca_picture(path: Path, images: UInt8[Tensor, "B 3 Y X"], rows: dict[str, Float[Tensor, "B H W D"]]) -> None:
    """Write a picture: the images in the first row, under them a row of components for every named set of features."""
    side = 128
    count = len(images)
    canvas = np.full(((1 + len(rows)) * (side + 4) + 4, count * (side + 4) + 4, 3), 255, np.uint8)
    shown = [images.permute(0, 2, 3, 1).numpy()]
    shown += [(components(patches) * 255).round().to(torch.uint8).numpy() for patches in rows.values()]
    for line, pictures in enumerate(shown):
        for column, picture in enumerate(pictures):
            how = Image.Resampling.BICUBIC if line == 0 else Image.Resampling.NEAREST
            tile = np.asarray(Image.fromarray(picture).resize((side, side), how))
            top, left = 4 + line * (side + 4), 4 + column * (side + 4)
            canvas[top : top + side, left : left + side] = tile
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "PNG")
    write_atomic(path, lambda out: out.write(file.getvalue()))
