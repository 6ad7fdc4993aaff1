"""Features that no one learnt, to compare learnt ones with: thumbnails and colour histograms.

Axes: N images, Y by X pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinoforge.model.pixels import thumbnails

SIDE = 16
"""Side of a thumbnail, in pixels."""
BINS = 8
"""Steps a channel of a colour histogram."""


def thumbnail(pixels: UInt8[np.ndarray, "Y X 3"]) -> Float[Tensor, " 768"]:
    """The picture at 16 by 16 pixels, antialiased, about its own mean: what pixel k-NN compares."""
    return thumbnails(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float(), SIDE)[0]


def histogram(pixels: UInt8[np.ndarray, "Y X 3"]) -> Float[Tensor, " 512"]:
    """Root of the share of pixels in each of 8 x 8 x 8 colours, so that a cosine is Bhattacharyya's coefficient."""
    steps = (pixels // (256 // BINS)).astype(np.int64)
    index = (steps[..., 0] * BINS + steps[..., 1]) * BINS + steps[..., 2]
    counts = np.bincount(index.ravel(), minlength=BINS**3)
    return torch.from_numpy(np.sqrt(counts / index.size).astype(np.float32))


BASELINES: dict[str, Callable[[np.ndarray], Tensor]] = {"pixels": thumbnail, "histogram": histogram}
"""Every baseline by its name."""
