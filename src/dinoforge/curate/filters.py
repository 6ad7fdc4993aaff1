"""What is left out for what it is: pictures too small, too long, flat, blurred, mere noise or text; marks of owners.

Pure functions: ``measured`` of one picture's pixels, the rest of columns. Broken files never get here (``Broken``).

Axes: N images, Y by X pixels, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.curate.why import Dropped

STAGE = "filters"
_SIDE = 256
"""Longest side of what is measured, in pixels: sharpness of larger pictures is judged at this size."""
_FINE = 0.5
"""Share of the variance of grey in structures finer than 4 pixels that a page of text has at least."""


class FilterConfig(Config):
    """What a picture must have. A null takes the filter out."""

    smallest_side: int | None = Field(default=16, ge=1)
    """Pixels of the shorter side."""
    longest_aspect: float | None = Field(default=4.0, ge=1)
    """Longer side over shorter."""
    least_spread: float | None = Field(default=4.0, ge=0)
    """Standard deviation of grey, in 8-bit steps: below it a picture is flat."""
    least_detail: float | None = Field(default=0.8, ge=0)
    """Detail of the sharpest twentieth of the picture, in 8-bit steps: below it a picture is blurred, or a mere gradient."""
    most_noise: float | None = Field(default=0.9, gt=0, le=1)
    """Share of the variance of grey that is gone when 4 by 4 pixels are averaged: above it there is nothing but noise."""
    most_page: float | None = Field(default=0.95, gt=0, le=1)
    """Share of pixels near a light grey or a dark one in a picture of fine structure: above it, it is a page of text."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the filters know of a picture."""

    width: float
    height: float
    spread: float
    detail: float
    noise: float
    page: float


def measured(pixels: UInt8[np.ndarray, "Y X C"]) -> Measured:
    """Measure a picture. What needs more pixels than it has is measured as harmless: it fails by its size."""
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(np.ascontiguousarray(pixels[..., : min(pixels.shape[2], 4)]), size, interpolation=cv2.INTER_AREA)
    small = small.reshape(size[1], size[0], -1).astype(np.float32)
    grey = small.mean(axis=2)
    return Measured(width, height, float(grey.std()), _detail(grey), _noise(grey), _page(small, grey))


def _detail(grey: Float[np.ndarray, "y x"]) -> float:
    """How strongly the sharpest twentieth of the pixels differs from their surroundings, freed of single pixels' noise."""
    if min(grey.shape) < 8:
        return float("inf")
    band = cv2.GaussianBlur(grey, (0, 0), 1.0) - cv2.GaussianBlur(grey, (0, 0), 2.0)
    inner = band[4:-4, 4:-4] if min(grey.shape) >= 16 else band  # at the border a mere slope has a kink
    return float(np.percentile(np.abs(inner), 95))


def _noise(grey: Float[np.ndarray, "y x"]) -> float:
    rows, columns = grey.shape[0] // 4 * 4, grey.shape[1] // 4 * 4
    if min(rows, columns) < 8:
        return 0.0
    cut = grey[:rows, :columns]
    coarse = cut.reshape(rows // 4, 4, columns // 4, 4).mean(axis=(1, 3))
    return float(1 - coarse.var() / cut.var()) if cut.var() > 0.1 else 0.0


def _page(small: Float[np.ndarray, "y x c"], grey: Float[np.ndarray, "y x"]) -> float:
    """Share of grey pixels near the commonest light tone and the commonest clearly darker one; 0 without fine structure."""
    if _noise(grey) < _FINE:
        return 0.0
    colourless = (small.max(axis=2) - small.min(axis=2)) <= 16
    tones = np.bincount((grey[colourless] / 8).astype(np.int64), minlength=32)
    light = int(tones[20:].argmax()) + 20
    dark = int(tones[: light - 8].argmax())
    near = tones[max(light - 1, 0) : light + 2].sum() + tones[max(dark - 1, 0) : dark + 2].sum()
    return float(near / grey.size) if tones[light] > tones[dark] > 0 else 0.0


def filtered(pictures: Sequence[Measured], rows: Int[np.ndarray, " N"], *, config: FilterConfig) -> Dropped:
    """The pictures that fail, each with the first thing that it fails by."""
    width, height, spread, detail, noise, page = (
        np.asarray([getattr(picture, name) for picture in pictures], dtype=np.float64) for name in Measured.__slots__
    )
    short, long = np.minimum(width, height), np.maximum(width, height)
    tests = (
        ("too small", config.smallest_side, short, np.less),
        ("too long", config.longest_aspect, long / np.maximum(short, 1), np.greater),
        ("flat", config.least_spread, spread, np.less),
        ("blurred", config.least_detail, detail, np.less),
        ("noise", config.most_noise, noise, np.greater),
        ("page of text", config.most_page, page, np.greater),
    )
    reason = np.full(len(rows), "", dtype="<U16")
    for name, limit, values, fails in tests:
        if limit is not None:
            reason[(reason == "") & fails(values, limit)] = name
    failed = reason != ""
    return Dropped.alone(rows[failed], reason[failed], stage=STAGE)


REFUSALS = frozenset({"noai", "noimageai"})
"""Marks of pages and files that refuse to be learned from (X-Robots-Tag, robots meta)."""


def refused(marks: Shaped[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Which rows carry a mark that refuses, in texts such as ``noindex, NoAI`` or ``otherbot: noai``."""
    return np.asarray([not REFUSALS.isdisjoint(re.split(r"[^a-z]+", str(mark).lower())) for mark in marks], dtype=bool)
