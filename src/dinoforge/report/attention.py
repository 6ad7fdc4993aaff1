"""Pictures of class-token attention: where the image feature looks.

Axes: B images, H by W patches, Y by X pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dinoforge.report.tiles import sheet, write_png

_RAMP = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))
"""From no attention to the most: dark to light, so that it reads without colour too."""
_MEANS = 3.0
"""A patch is drawn lightest from so many times the mean of its map on, so that attention to all alike stays dull."""
_HEAT = 0.65
"""Weight of the heat over the picture."""


def heat(attention: Float[Tensor, "B H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    """Each map as colours from dark (nothing) to light: its own largest value, or three times its mean if that is more."""
    maps = torch.nan_to_num(attention.float())
    top = torch.maximum(maps.amax((1, 2), keepdim=True), _MEANS * maps.mean((1, 2), keepdim=True))
    share = maps / top.clamp(min=1e-30)
    stops = torch.tensor(_RAMP, dtype=torch.float32)
    place = share.clamp(0, 1) * (len(_RAMP) - 1)
    low = place.floor().long().clamp(max=len(_RAMP) - 2)
    part = (place - low).unsqueeze(-1)
    return (stops[low] * (1 - part) + stops[low + 1] * part).round().to(torch.uint8).numpy()


def overlaid(images: UInt8[Tensor, "B 3 Y X"], attention: Float[Tensor, "B H W"]) -> UInt8[np.ndarray, "B Y X 3"]:
    """The heat, resampled to the pixels, over the images in grey."""
    smooth = F.interpolate(
        torch.nan_to_num(attention.float()).unsqueeze(1), images.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]
    grey = images.float().mean(1, keepdim=True).permute(0, 2, 3, 1).numpy()
    mixed = _HEAT * heat(smooth) + (1 - _HEAT) * grey
    return mixed.round().astype(np.uint8)


def attention_picture(path: Path, images: UInt8[Tensor, "B 3 Y X"], attention: Float[Tensor, "B heads H W"]) -> None:
    """Write a PNG: the images, under them the mean of the heads, then every head if there are several."""
    lines = [images.permute(0, 2, 3, 1).numpy(), overlaid(images, attention.mean(1))]
    if attention.shape[1] > 1:
        lines += [overlaid(images, head) for head in attention.unbind(1)]
    write_png(path, sheet([[Image.fromarray(picture) for picture in line] for line in lines]))
