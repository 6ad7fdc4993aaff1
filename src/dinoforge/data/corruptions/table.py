"""Every corruption by its name, and the numbers of its five severities (Hendrycks & Dietterich 2019, their published program).

Axes: Y by X pixels, S by S pixels of a square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dinoforge.data.corruptions import blur, digital, noise, weather

SIDE = 224
"""Side of the pictures that the numbers are meant for, in pixels."""
SEVERITIES = 5

Level = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One corruption."""

    of: Callable[[np.ndarray, Level, np.random.Generator], np.ndarray]
    """Of pixels, the numbers of a severity and a generator; values on the scale 0 to 1, and beyond."""
    levels: tuple[Level, Level, Level, Level, Level]
    """From the mildest severity to the worst."""


BENCHMARK: dict[str, Corruption] = {
    "gaussian_noise": Corruption(noise.gaussian_noise, ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))),
    "shot_noise": Corruption(noise.shot_noise, ((60,), (25,), (12,), (5,), (3,))),
    "impulse_noise": Corruption(noise.impulse_noise, ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))),
    "defocus_blur": Corruption(blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Corruption(blur.glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Corruption(blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Corruption(blur.zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": Corruption(weather.snow, (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )),
    "frost": Corruption(weather.frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": Corruption(weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": Corruption(weather.brightness, ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "contrast": Corruption(digital.contrast, ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))),
    # Meant were shares of 224; the published files were made with 244.
    "elastic_transform": Corruption(digital.elastic_transform, (
        (244 * 2, 244 * 0.7, 244 * 0.1), (244 * 2, 244 * 0.08, 244 * 0.2), (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02), (244 * 0.12, 244 * 0.01, 244 * 0.02),
    )),
    "pixelate": Corruption(digital.pixelate, ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))),
    "jpeg_compression": Corruption(digital.jpeg_compression, ((25,), (18,), (15,), (10,), (7,))),
}  # fmt: skip
"""The fifteen that the benchmark's mean is of."""

CORRUPTIONS: dict[str, Corruption] = {
    **BENCHMARK,
    "speckle_noise": Corruption(noise.speckle_noise, ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,))),
    "gaussian_blur": Corruption(blur.gaussian_blur, ((1,), (2,), (3,), (4,), (6,))),
    "spatter": Corruption(weather.spatter, (
        (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1),
    )),
    "saturate": Corruption(digital.saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
}  # fmt: skip
"""Those, and the four that the authors keep for choosing settings."""


def corrupt(
    pixels: UInt8[np.ndarray, "S S 3"], name: str, severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """A corrupted picture.

    Args:
        severity: 1 to 5.
    """
    corruption = CORRUPTIONS[name]
    found = corruption.of(pixels, corruption.levels[severity - 1], rng)
    return np.rint(found.clip(0, 1) * 255).astype(np.uint8)
