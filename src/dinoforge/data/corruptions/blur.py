"""Blurs of ImageNet-C (Hendrycks & Dietterich 2019). Arguments and results as in ``noise.py``.

Axes: S by S pixels of a square, Y by X pixels, n pixels that move, k by k weights.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

_SPAN = 8
"""Pixels to each side in which a small disc of defocus is drawn."""


def gaussian_blur(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: width, in pixels."""
    (sigma,) = level
    return _gaussian(pixels, sigma)


def defocus_blur(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: radius of the disc that a point becomes, and the width by which the disc's edge is smoothed, in pixels."""
    return cv2.filter2D((pixels / 255).astype(np.float32), -1, disc(*level))


def disc(radius: float, smooth: float) -> Float[np.ndarray, "k k"]:
    """A disc whose edge is smoothed, over 3 pixels up to a radius of 8, above over 5.

    Its sum is 1, but up to 1.013 for radii of 8 and above: mirrored, where the disc touches the border. So the files are.
    """
    span, kernel = (_SPAN, 3) if radius <= _SPAN else (int(radius), 5)
    at = np.arange(-span, span + 1)
    inside = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(inside / inside.sum(), (kernel, kernel), smooth)


def glass_blur(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: width of the blur before and after, how far pixels move, and how often all of them do.

    From the lower right on, a pixel takes the value of one nearby. The paper speaks of shuffling; the program that made the
    published files means to exchange the two, and exchanges two views of one array, which copies the one over the other. We do
    as the files are.
    """
    sigma, reach, rounds = level[0], int(level[1]), int(level[2])
    start = np.rint(_gaussian(pixels, sigma) * 255).astype(np.uint8)
    high, wide = start.shape[:2]
    rows, columns = np.arange(high - reach, reach, -1), np.arange(wide - reach, reach, -1)
    place = (rows[:, None] * wide + columns).ravel()
    order = np.arange(high * wide)
    for _ in range(rounds):
        down, right = rng.integers(-reach, reach, (2, len(place)))
        order = order[_copied(place, place + down * wide + right, pixels=high * wide)]
    return _gaussian(start.reshape(-1, 3)[order].reshape(start.shape), sigma)


def _copied(
    place: Int[np.ndarray, " n"], there: Int[np.ndarray, " n"], *, pixels: int
) -> Int[np.ndarray, " pixels"]:  # fmt: skip
    """Whose value each pixel has after those at ``place``, which fall, have one after the other taken the one ``there``.

    A pixel that is taken from may have taken another's before; those are followed, twice as far at each look.
    """
    taken, follow = np.arange(pixels), np.arange(pixels)
    taken[place], follow[place] = there, np.maximum(there, place)
    while (further := follow[follow]).tobytes() != follow.tobytes():
        follow = further
    return taken[follow]


def motion_blur(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: half the trace's length, and its width, in pixels. It lies within 45 degrees of the horizontal."""
    return moved((pixels / 255).astype(np.float32), level, angle=rng.uniform(-45, 45))


def moved(
    x: Float[np.ndarray, "Y X *C"], level: tuple[float, ...], *, angle: float
) -> Float[np.ndarray, "Y X *C"]:  # fmt: skip
    """ImageMagick's motion blur: one half of a Gaussian along a straight trace, edges repeated.

    Args:
        angle: In degrees.
    """
    length, sigma = 2 * math.ceil(level[0]) + 1, level[1]
    step, way = np.arange(length), math.radians(angle)
    weight = np.exp(-(step**2) / (2 * sigma**2))
    down, right = (np.ceil(step * part - 0.5).astype(int) for part in (math.sin(way), math.cos(way)))
    kernel = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    np.add.at(kernel, (length + down, length + right), weight / weight.sum())
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def zoom_blur(
    pixels: UInt8[np.ndarray, "S S 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "S S 3"]:
    """Level: the zoom that is not reached, and the step; the mean of the picture and of all zooms from 1 on."""
    factors = np.arange(1, *level)
    planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
    total = planes + sum(zoomed(planes, float(factor)) for factor in factors)
    return (total / (len(factors) + 1)).permute(1, 2, 0).numpy()


def zoomed(planes: Float[Tensor, "*C S S"], factor: float) -> Float[Tensor, "*C S S"]:
    """The middle of a picture, enlarged to its size (bilinear)."""
    weights = _stretch(planes.shape[-1], factor)
    return weights @ planes @ weights.T


@lru_cache(maxsize=128)
def _stretch(side: int, factor: float) -> Float[Tensor, "S S"]:
    """Of which pixels the enlarged middle of an axis is made: its ends are those of a stretch of whole pixels."""
    kept = math.ceil(side / factor)
    first, long = (side - kept) // 2, round(kept * factor)
    at = (np.arange(side) + (long - side) // 2) * (kept - 1) / (long - 1)
    low = np.minimum(at.astype(int), kept - 2)
    weights = torch.zeros(side, side)
    weights[np.arange(side), first + low] = torch.from_numpy(1 - (at - low)).float()
    weights[np.arange(side), first + low + 1] = torch.from_numpy(at - low).float()
    return weights


def _gaussian(pixels: Shaped[np.ndarray, "Y X 3"], sigma: float) -> Float[np.ndarray, "Y X 3"]:
    """Blurred bytes on the scale 0 to 1; the kernel reaches four widths, edges are repeated."""
    from scipy import ndimage

    return ndimage.gaussian_filter((pixels / 255).astype(np.float32), (sigma, sigma, 0), mode="nearest", truncate=4)
