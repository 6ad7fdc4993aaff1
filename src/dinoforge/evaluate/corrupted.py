"""A corrupted picture as a frozen backbone is shown it.

Axes: Y by X pixels of a picture, S by S of what is corrupted and of what is seen, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dinoforge.base.random import numpy_generator
from dinoforge.data.augment import centre, resize
from dinoforge.data.corruptions.digital import as_jpeg
from dinoforge.data.corruptions.table import SIDE, corrupt
from dinoforge.features.views import View
from dinoforge.model.weights import Preprocessing


def how_corrupted(*, seed: int, quality: int | None) -> str:
    """How all corrupted pictures are made, in words."""
    kept = "not compressed" if quality is None else f"kept as JPEG of quality {quality}"
    return f"corrupted at {SIDE} pixels, seed {seed}, {kept}"


def corrupted(how: Preprocessing, name: str, severity: int, *, seed: int, quality: int | None) -> View:
    """The middle that a preprocessing cuts out, corrupted; every row differently, always the same.

    The severities are in pixels of a square of 224, and so is what is corrupted, as the files of the benchmark are; a backbone
    that takes other sizes sees it resized.

    Args:
        severity: 1 to 5.
        quality: At which the corrupted picture is then compressed as JPEG; the benchmark's files are (85). None: it is not.
    """
    short = round(how.short_side * SIDE / how.side)

    def see(pixels: np.ndarray, row: int) -> Tensor:
        clean = centre(pixels, short_side=short, side=SIDE).permute(1, 2, 0).contiguous().numpy()
        found = corrupt(clean, name, severity, numpy_generator(seed, f"{name} {severity}", row))
        found = found if quality is None else as_jpeg(found, quality)
        return resize(torch.from_numpy(found).permute(2, 0, 1), how.side, how.side).contiguous()

    made = how_corrupted(seed=seed, quality=quality)
    return View(f"short side {short}, {name} {severity}, {made}, seen at {how.side}", see)
