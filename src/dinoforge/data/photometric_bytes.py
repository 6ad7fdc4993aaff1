"""Colours of views on a processor: what ``photometric`` does, view after view in whole grey levels, by OpenCV.

The published definition (Pillow's) rounds after every change too. A view of bytes stays in the processor's cache from one
change to the next, and one instruction works on 16 to 64 of them.

Axes: V views, C channels, Y by X pixels, P parameters (``augment.PARAMETERS``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinoforge.base.allocator import keep_freed_memory
from dinoforge.data.augment import PARAMETERS, ColourConfig
from dinoforge.data.photometric import BRIGHTNESS, CONTRAST, LUMA, ORDERS, REACH, SATURATION

Plane = UInt8[np.ndarray, "Y X *C"]
"""Red, green and blue side by side, or one channel."""

_SOLARISED = np.asarray([level if level < 128 else 255 - level for level in range(256)], dtype=np.uint8)
_EDGES = cv2.BORDER_REFLECT_101
_FELT = math.sqrt(2 * math.log(256))
"""How many widths of a blur away a pixel weighs a 256th of the middle one; OpenCV counts weights in 256ths."""


def recolour_bytes(
    views: UInt8[Tensor, "V C Y X"], colours: Float[Tensor, "V P"], config: ColourConfig
) -> Float[Tensor, "V C Y X"]:
    """See ``photometric.recolour``, which has checked what comes in. As many views at once as torch has threads."""
    _settle()
    out = torch.empty(views.shape, dtype=torch.float32)
    scale, shift = _normalising(config, views.shape[1])
    jobs = list(zip(views.numpy(), colours.tolist(), out.numpy(), strict=True))
    threads = min(torch.get_num_threads(), len(jobs))

    def work(first: int) -> None:
        for planes, row, place in jobs[first :: max(threads, 1)]:
            for part, factor, ahead, plane in zip(
                _recoloured(planes, dict(zip(PARAMETERS, row, strict=True))), scale, shift, place, strict=True
            ):
                cv2.addWeighted(part, factor, part, 0, ahead, plane, cv2.CV_32F)

    if threads < 2:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    return out


@cache
def _settle() -> None:
    """Views are small: threads of OpenCV's own, inside ours, would only wait for one another."""
    cv2.setNumThreads(1)
    keep_freed_memory()


def _normalising(config: ColourConfig, channels: int) -> tuple[list[float], list[float]]:
    """By what the levels of a channel are multiplied in the end, and what is added."""
    mean, std = (np.broadcast_to(np.asarray(values, dtype=float), channels) for values in (config.mean, config.std))
    return (1 / (255 * std)).tolist(), (-mean / std).tolist()


def _recoloured(planes: UInt8[np.ndarray, "C Y X"], value: Mapping[str, float]) -> Sequence[UInt8[np.ndarray, "Y X"]]:
    """One view, channel by channel."""
    parts: Sequence[Plane] = [cv2.merge(tuple(planes))] if len(planes) == len(LUMA) else list(planes)
    if value["jitter"]:
        for change in ORDERS[int(value["order"])]:
            parts = _changed(parts, change, value)
    if value["grey"]:
        parts = [_grey(parts)]
    if value["sigma"]:
        parts = [_blurred(part, value["sigma"]) for part in parts]
    if value["solarise"]:
        parts = [cv2.LUT(part, _SOLARISED) for part in parts]
    if parts[0].ndim == 3:
        parts = cv2.split(parts[0])
    return parts if len(parts) == len(planes) else [*parts] * len(planes)


def _changed(parts: Sequence[Plane], change: int, value: Mapping[str, float]) -> Sequence[Plane]:
    """Brightness, contrast, saturation or hue, cut off at 0 and 255."""
    if change == BRIGHTNESS:
        return [cv2.convertScaleAbs(part, alpha=value["brightness"]) for part in parts]
    if change == CONTRAST:
        kept = value["contrast"]
        grey = (1 - kept) * _mean_grey(parts)
        return [cv2.addWeighted(part, kept, part, 0, grey) for part in parts]
    if parts[0].ndim == 2:
        return parts  # only red, green and blue have saturation and hue
    if change == SATURATION:
        kept = value["saturation"]
        return [cv2.transform(parts[0], kept * np.eye(3) + (1 - kept) * np.asarray([LUMA] * 3))] if kept != 1 else parts
    return [_turned(parts[0], value["hue"])]


def _turned(rgb: UInt8[np.ndarray, "Y X 3"], turn: float) -> UInt8[np.ndarray, "Y X 3"]:
    """The colour wheel turned by so many whole turns, in steps of 1/256; value and saturation of HSV stay.

    The number of steps is that of the published definition, which counts 255 of them and leaves out fractions.
    """
    step = int(255 * turn) % 256
    if not step:
        return rgb
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV_FULL)
    # To each pixel's hue and to nothing else; 255 and 0 are neighbours, and bytes go round by themselves.
    rows = hsv.reshape(len(hsv), -1)
    rows += np.tile(np.asarray([step, 0, 0], dtype=np.uint8), hsv.shape[1])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def _grey(parts: Sequence[Plane]) -> UInt8[np.ndarray, "Y X"]:
    """Luma of red, green and blue; of other channels their mean."""
    if parts[0].ndim == 3:
        return cv2.cvtColor(parts[0], cv2.COLOR_RGB2GRAY)
    return np.mean(np.stack(parts), axis=0).round().astype(np.uint8)


def _mean_grey(parts: Sequence[Plane]) -> float:
    if parts[0].ndim == 3:
        return float(np.dot(cv2.mean(parts[0])[:3], LUMA))
    return float(np.mean([cv2.mean(part)[0] for part in parts]))


def _blurred(part: Plane, sigma: float) -> Plane:
    """Gaussian blur with mirrored edges, no wider than its weights are felt, at most 9 pixels."""
    reach = min(REACH, int(_FELT * sigma), *(length - 1 for length in part.shape[:2]))
    across = 2 * reach + 1
    return cv2.GaussianBlur(part, (across, across), sigma, borderType=_EDGES) if reach else part
