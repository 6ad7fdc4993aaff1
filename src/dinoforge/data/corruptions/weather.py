"""Weather of ImageNet-C (Hendrycks & Dietterich 2019). Arguments and results as in ``noise.py``.

Axes: S by S pixels of a square, Y by X pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from dinoforge.data.corruptions.blur import moved, zoomed
from dinoforge.data.photometric import LUMA

_ICE = np.asarray([0.80, 0.90, 1.00])
"""Colour of thin frost; thick frost is white."""
_NEEDLES = 12
"""Directions of the needles of frost."""
_WATER = np.asarray([175, 238, 238]) / 255
_MUD = np.asarray([63, 42, 20]) / 255


def snow(
    pixels: UInt8[np.ndarray, "S S 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "S S 3"]:
    """Level: mean and deviation of the flakes, their zoom, what they must exceed, their trace (two numbers, ``motion_blur``),
    and the share of the picture that does not turn white."""
    mean, deviation, zoom, least, *trace, kept = level
    flakes = zoomed(torch.from_numpy(rng.normal(mean, deviation, pixels.shape[:2])).float(), zoom).numpy()
    flakes = np.where(flakes < least, np.float32(0), flakes).clip(0, 1)
    fallen = moved(flakes, tuple(trace), angle=rng.uniform(-135, -45))[..., None]
    x = pixels / 255
    white = np.maximum(x, (x @ LUMA)[..., None] * 1.5 + 0.5)
    return kept * x + (1 - kept) * white + fallen + np.rot90(fallen, 2)


def frost(
    pixels: UInt8[np.ndarray, "S S 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "S S 3"]:
    """Level: what is left of the picture, and how much of the frost is added.

    The original adds a part of one of five photographs of frosted panes. We draw one instead, see ``frosted_pane``, so errors
    under this corruption are near, not equal, to those on the published files.
    """
    return level[0] * pixels / 255 + level[1] * frosted_pane(pixels.shape[0], rng)


def frosted_pane(side: int, rng: np.random.Generator) -> Float[np.ndarray, "S S 3"]:
    """Bluish ice, 0 to 1: needles in all directions and veins, thick in some regions and thin in others."""
    thick, grain = plasma(side, 2.0, rng), plasma(side, 1.4, rng)
    needles = np.zeros((side, side), np.float32)
    for angle in rng.uniform(0, 360, _NEEDLES):
        seeds = (rng.random((side, side)) < 0.004).astype(np.float32)
        needles = np.maximum(needles, moved(seeds, (16, 12), angle=angle))
    veins = 1 - np.abs(
        2 * plasma(side, 1.5, rng) - 1
    )  # where a field crosses its middle it leaves lines, as crystals do
    ice = thick * (0.6 * grain + 0.5 * needles / needles.max()) + 0.2 * veins**8
    ice = (ice / np.quantile(ice, 0.99)).clip(0, 1)
    return ice[..., None] * (_ICE + (1 - _ICE) * ice[..., None])


def fog(
    pixels: UInt8[np.ndarray, "S S 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "S S 3"]:
    """Level: how much of the fog is added, and its decay (``plasma``); the sum is scaled to the picture's range."""
    amount, decay = level
    x = pixels / 255
    top = x.max()
    return (x + amount * plasma(pixels.shape[0], decay, rng)[..., None]) * top / (top + amount)


def plasma(side: int, decay: float, rng: np.random.Generator) -> Float[np.ndarray, "S S"]:
    """A fractal field on a torus, 0 to 1 before it is cut to the side (diamond-square; Fournier et al. 1982).

    What is added to the mean of four neighbours is uniform, of an amplitude that falls by ``decay**2`` at each finer scale.
    """
    size = 1 << (side - 1).bit_length()
    field, step, wobble = np.zeros((size, size)), size, 100.0
    while step > 1:
        half = step // 2
        corners = field[::step, ::step]
        ahead = corners + np.roll(corners, -1, 1)
        field[half::step, half::step] = _shaken(ahead + np.roll(ahead, -1, 0), wobble, rng)
        middles = field[half::step, half::step]
        below = corners + np.roll(corners, -1, 0)
        field[::step, half::step] = _shaken(ahead + middles + np.roll(middles, 1, 0), wobble, rng)
        field[half::step, ::step] = _shaken(below + middles + np.roll(middles, 1, 1), wobble, rng)
        step, wobble = half, wobble / decay
    field -= field.min()
    return (field / field.max())[:side, :side]


def _shaken(total: np.ndarray, wobble: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of four, given their sum, and something more."""
    return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)


def brightness(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: what is added to the value of HSV; hue and saturation stay."""
    x = pixels / 255
    value = x.max(-1, keepdims=True)
    more = np.minimum(value + level[0], 1)
    return np.where(value > 0, x * more / np.maximum(value, 1e-9), more)


def spatter(
    pixels: UInt8[np.ndarray, "Y X 3"], level: tuple[float, ...], rng: np.random.Generator
) -> Float[np.ndarray, "Y X 3"]:
    """Level: mean, deviation and blur of the drops, what they must exceed, their strength or blur, and whether they are mud."""
    mean, deviation, sigma, least, last, mud = level
    drops = cv2.GaussianBlur(rng.normal(mean, deviation, pixels.shape[:2]), (0, 0), sigma)
    drops = np.where(drops < least, 0, drops)
    if mud:
        cover = cv2.GaussianBlur((drops > least).astype(np.float64), (0, 0), last)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return pixels / 255 * (1 - cover) + _MUD * cover
    return pixels / 255 + _shining(drops)[..., None] * last * _WATER


def _shining(drops: Float[np.ndarray, "Y X"]) -> Float[np.ndarray, "Y X"]:
    """Drops of water lit from one side, 0 to 1: brightest near their edges."""
    wet = (drops.clip(0, 1) * 255).astype(np.uint8)
    away = cv2.distanceTransform(255 - cv2.Canny(wet, 50, 150), cv2.DIST_L2, 5)
    shade = cv2.equalizeHist(cv2.blur(np.minimum(away, 20), (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(shade, cv2.CV_8U, np.asarray([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32))
    light = wet * cv2.blur(relief, (3, 3)).astype(np.float64)
    return light / max(light.max(), 1e-9)
