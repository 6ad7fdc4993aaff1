"""Photometric distortion of crops for dense training (Liu et al. 2016, SSD, sec. 2.2, as segmentation took it over).

Axes: C channels, Y by X pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 36.0
"""Grey levels added at most, factors, and degrees of hue turned at most."""
_HALF = 0.5


def distorted(rng: np.random.Generator, picture: UInt8[Tensor, "C Y X"]) -> UInt8[Tensor, "C Y X"]:
    """Brightness, contrast before or after the colours, saturation and hue, each changed half of the time.

    Pictures of other channels than three have no saturation and no hue. Every number is drawn whether it is used or not.
    """
    chance, amount = rng.random(5), rng.random(4)
    values = picture.permute(1, 2, 0).numpy().astype(np.float32)
    if chance[0] < _HALF:
        values = _cut_off(values + _BRIGHTNESS * (2 * amount[0] - 1))
    stretch, first = (np.interp(amount[1], (0, 1), _CONTRAST) if chance[1] < _HALF else 1.0), chance[2] < _HALF
    if first:
        values = _cut_off(values * stretch)
    if picture.shape[0] == 3:
        saturation = np.interp(amount[2], (0, 1), _SATURATION) if chance[3] < _HALF else 1.0
        values = _coloured(values, saturation, _HUE * (2 * amount[3] - 1) if chance[4] < _HALF else 0.0)
    if not first:
        values = _cut_off(values * stretch)
    return torch.from_numpy(values.round().astype(np.uint8)).permute(2, 0, 1).contiguous()


def _cut_off(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.float32)


def _coloured(values: Float[np.ndarray, "Y X 3"], saturation: float, turn: float) -> Float[np.ndarray, "Y X 3"]:
    """With another saturation and hue in HSV."""
    if saturation == 1 and turn == 0:
        return values
    wheel = cv2.cvtColor(values / 255, cv2.COLOR_RGB2HSV)  # degrees, 0 to 1, 0 to 1
    wheel[..., 0] = (wheel[..., 0] + turn) % 360
    wheel[..., 1] = (wheel[..., 1] * saturation).clip(0, 1)
    return np.asarray(cv2.cvtColor(wheel, cv2.COLOR_HSV2RGB) * 255).clip(0, 255)
