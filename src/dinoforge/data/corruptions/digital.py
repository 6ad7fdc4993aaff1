"""Digital corruptions of ImageNet-C (Hendrycks & Dietterich 2019). Arguments and results as in ``noise.py``.

Axes: S by S pixels of a square, Y by X pixels.
"""

from __future__ import annotations

import io
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def contrast(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: what is left of the difference from the mean colour."""
    x = pixels / 255
    mean = x.mean((0, 1))
    return (x - mean) * level[0] + mean


def elastic_transform(
    pixels: UInt8[np.ndarray, "S S 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "S S 3"]:
    """Level: strength and width of the field that displaces pixels, and how far three points move before, in pixels."""
    from scipy import ndimage

    strength, sigma, reach = level
    side = pixels.shape[0]
    middle, arm = side // 2, side // 3
    points = np.asarray([[1, 1], [1, -1], [-1, -1]], np.float32) * arm + middle
    turn = cv2.getAffineTransform(points, points + rng.uniform(-reach, reach, (3, 2)).astype(np.float32))
    x = cv2.warpAffine((pixels / 255).astype(np.float32), turn, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    smooth = _smoothing(side, sigma)
    down, right = (strength * (smooth @ rng.uniform(-1, 1, (side, side)) @ smooth.T) for _ in range(2))
    at = np.arange(side)
    places = np.stack([at[:, None] + down, at + right])
    return np.stack(
        [ndimage.map_coordinates(plane, places, order=1, mode="reflect") for plane in x.transpose(2, 0, 1)], -1
    )


@lru_cache(maxsize=16)
def _smoothing(side: int, sigma: float) -> Float[np.ndarray, "S S"]:
    """A Gaussian along an axis, edges mirrored, as a matrix: its kernel is longer than the axis."""
    from scipy import ndimage

    found: np.ndarray = ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=3)
    return found


def pixelate(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: the side that is left, as a share."""
    high, wide = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(wide * level[0]), int(high * level[0])), Image.Resampling.BOX)
    return np.asarray(small.resize((wide, high), Image.Resampling.BOX)) / 255


def jpeg_compression(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: quality."""
    return as_jpeg(pixels, int(level[0])) / 255


def as_jpeg(pixels: UInt8[np.ndarray, "Y X 3"], quality: int) -> UInt8[np.ndarray, "Y X 3"]:
    """What a JPEG file keeps of a picture (Pillow's)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def saturate(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: factor and addend of the saturation of HSV; hue and value stay. Grey has the hue of red."""
    x = pixels / 255
    value, least = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    chroma = value - least
    more = (chroma / np.maximum(value, 1e-9) * level[0] + level[1]).clip(0, 1)
    away = np.where(chroma > 0, (value - x) / np.maximum(chroma, 1e-9), [0.0, 1.0, 1.0])
    return value * (1 - more * away)
