"""Colours of a batch of views, on the device: jitter, grey, blur, solarise, normalise, each view by its own parameters.

The order and the formulas are those of the augmentations that DINO was trained with, on numbers between 0 and 1 that are not
rounded to 256 levels in between.

Axes: V views, C channels, Y by X pixels, P parameters (``augment.PARAMETERS``).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from dinoforge.data.augment import PARAMETERS, ColourConfig

ORDERS = tuple(permutations(range(4)))
"""The 24 orders of brightness, contrast, saturation and hue."""
_KERNEL = 9
_OF_RGB = frozenset({"saturation", "hue"})
"""Changes that only red, green and blue have."""

Images = Float[Tensor, "V C Y X"]


def recolour(
    views: UInt8[Tensor, "V C Y X"], colours: Float[Tensor, "V P"], config: ColourConfig
) -> Float[Tensor, "V C Y X"]:
    """The views as the networks see them.

    ``colours`` lies on the host: which views a change concerns is known without waiting for the device.
    """
    x = views.float() / 255
    column = dict(zip(PARAMETERS, colours.unbind(1), strict=True))
    jittered = column["jitter"] > 0
    order = torch.tensor(ORDERS)[column["order"].long()]
    for place in range(4):
        for number, (name, change) in enumerate(CHANGES.items()):
            if x.shape[1] != 3 and name in _OF_RGB:
                continue
            x = _where(x, jittered & (order[:, place] == number), column[name], change)
    x = _where(x, column["grey"] > 0, column["grey"], lambda part, _: grey(part).expand_as(part))
    x = _where(x, column["sigma"] > 0, column["sigma"], blur)
    x = _where(
        x, column["solarise"] > 0, column["solarise"], lambda part, _: torch.where(part >= 128 / 255, 1 - part, part)
    )
    mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (config.mean, config.std))
    return (x - mean) / std


def _where(x: Images, chosen: Tensor, value: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Images:
    """Apply a change to the chosen views only."""
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return x
    index = rows.to(x.device, non_blocking=True)
    factor = value[rows].to(x.device, non_blocking=True).view(-1, 1, 1, 1)
    return x.index_copy(0, index, change(x[index], factor))


def grey(x: Images) -> Float[Tensor, "V 1 Y X"]:
    """Luma of ITU-R 601; of channels that are not red, green and blue, their mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return x[:, :1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:] * 0.114


def brightness(x: Images, factor: Tensor) -> Images:
    """Towards or away from black."""
    return (x * factor).clamp(0, 1)


def contrast(x: Images, factor: Tensor) -> Images:
    """Towards or away from the view's mean grey."""
    mean = grey(x).mean(dim=(-2, -1), keepdim=True)
    return (mean + factor * (x - mean)).clamp(0, 1)


def saturation(x: Images, factor: Tensor) -> Images:
    """Towards or away from each pixel's own grey."""
    base = grey(x)
    return (base + factor * (x - base)).clamp(0, 1)


def hue(x: Images, turn: Tensor) -> Images:
    """Turn the colour wheel by ``turn`` (1 is once around); value and saturation of HSV stay."""
    highest, lowest = x.amax(1), x.amin(1)
    chroma = highest - lowest
    red, green, blue = x.unbind(1)
    safe = chroma.clamp(min=1e-8)
    angle = torch.where(
        highest == red,
        ((green - blue) / safe) % 6,
        torch.where(highest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    angle = angle + 6 * turn.squeeze(1)
    # Channel n of HSV to RGB: V - C max(0, min(k, 4 - k, 1)) with k = (n + angle) mod 6, n = 5, 3, 1.
    channels = []
    for n in (5, 3, 1):
        k = (n + angle) % 6
        channels.append(highest - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


def blur(x: Images, sigma: Tensor) -> Images:
    """Gaussian blur, every view with its own width, edges mirrored."""
    count, channels, height, width = x.shape
    reach = min(_KERNEL // 2, height - 1, width - 1)
    place = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (place / sigma.view(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    taps = kernel.shape[1]
    flat = x.reshape(1, count * channels, height, width)
    flat = F.pad(flat, (reach, reach, reach, reach), mode="reflect")
    flat = F.conv2d(flat, kernel.view(-1, 1, 1, taps), groups=count * channels)
    flat = F.conv2d(flat, kernel.view(-1, 1, taps, 1), groups=count * channels)
    return flat.view(count, channels, height, width)
