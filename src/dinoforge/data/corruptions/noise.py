"""Noise of ImageNet-C (Hendrycks & Dietterich 2019): of every value of every channel, independently.

Each takes pixels, the numbers of a severity and a generator, and gives values on the scale 0 to 1, of which what leaves it is
cut off later.

Axes: Y by X pixels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8


def gaussian_noise(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: standard deviation."""
    (deviation,) = level
    return pixels / 255 + rng.normal(0, deviation, pixels.shape)


def shot_noise(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: photons that the brightest value stands for; their number is Poisson's."""
    (photons,) = level
    return rng.poisson(pixels / 255 * photons) / photons


def impulse_noise(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: share of the values that become 0 or 1, either as likely."""
    (share,) = level
    hit, salt = rng.random(pixels.shape) < share, rng.random(pixels.shape) < 0.5
    return np.where(hit, salt.astype(np.float64), pixels / 255)


def speckle_noise(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: standard deviation, as a share of the value."""
    (deviation,) = level
    return pixels / 255 * (1 + rng.normal(0, deviation, pixels.shape))
