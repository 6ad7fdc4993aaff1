"""How far predicted depth is from what was measured (Eigen et al. 2014, sec. 4.1), image by image.

Every measure is taken over the valid pixels of one image; a score is the mean over images, as in the released evaluation, so
that an image with few readings counts as much as any other.

Axes: Y by X pixels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dinoforge.base.errors import DataError

Crop = Literal["none", "eigen", "garg"]
_EIGEN = (480, 640), (slice(45, 471), slice(41, 601))
"""Pictures of NYU Depth v2, and the part of them in which depth was registered."""
_GARG = (0.40810811, 0.99189189), (0.03594771, 0.96405229)
"""Shares of height and width of a picture of KITTI (Garg et al. 2016)."""
_KITTI = (352, 376), (1216, 1242)
"""Heights and widths of rectified pictures of KITTI, and of the widely used cut of them."""
_RATIO = 1.25


class Measure(NamedTuple):
    """What a number of ``errors`` is."""

    unit: str
    higher_is_better: bool


_DELTAS = {f"delta{k}": Measure("fraction", True) for k in (1, 2, 3)}
"""Share of pixels off by a factor of less than 1.25^k."""
MEASURES: dict[str, Measure] = {
    "rmse": Measure("metres", False),
    "abs_rel": Measure("ratio", False),
    "sq_rel": Measure("metres", False),
    "rmse_log": Measure("nats", False),
    "log10": Measure("decades", False),
    "silog": Measure("nats", False),
    **_DELTAS,
}
"""Of depth in metres: root of the mean squared error, means of |error| / truth and of error^2 / truth, root of the mean squared
error of natural logarithms, mean absolute error of decimal ones, standard deviation of the error of natural ones."""
ALIGNED: dict[str, Measure] = {
    "silog": MEASURES["silog"],
    "abs_rel_aligned": MEASURES["abs_rel"],
    **{f"{name}_aligned": measure for name, measure in _DELTAS.items()},
}
"""Of disparity, whose scale and shift mean nothing."""


def errors(
    predicted: Float[np.ndarray, "Y X"], truth: Float[np.ndarray, "Y X"], valid: Bool[np.ndarray, "Y X"]
) -> dict[str, float]:  # fmt: skip
    """Every one of ``MEASURES`` for an image with a valid pixel.

    Args:
        predicted: Metres, above 0.
        truth: Metres, above 0 where valid.
    """
    p, t = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
    apart, logs = p - t, np.log(p) - np.log(t)
    return {
        "rmse": float(np.sqrt(np.mean(apart**2))),
        "abs_rel": float(np.mean(np.abs(apart) / t)),
        "sq_rel": float(np.mean(apart**2 / t)),
        "rmse_log": float(np.sqrt(np.mean(logs**2))),
        "log10": float(np.mean(np.abs(logs)) / np.log(10)),
        "silog": float(np.std(logs)),
        **_deltas(p, t),
    }


def aligned_errors(
    predicted: Float[np.ndarray, "Y X"], truth: Float[np.ndarray, "Y X"], valid: Bool[np.ndarray, "Y X"]
) -> dict[str, float]:  # fmt: skip
    """Every one of ``ALIGNED`` for an image with a valid pixel: after the scale and shift of the prediction that fit the truth
    best by least squares (Ranftl et al. 2020, eq. 4), in disparity itself; a pixel that these make negative is off by more than
    any ratio."""
    p, t = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
    fitted = _fitted(p, t)
    found = {"abs_rel": float(np.mean(np.abs(fitted - t) / t)), **_deltas(fitted, t)}
    return {"silog": float(np.std(np.log(p) - np.log(t))), **{f"{name}_aligned": one for name, one in found.items()}}


def _fitted(p: Float[np.ndarray, " n"], t: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """``s p + c`` nearest to ``t``; the mean of ``t`` where ``p`` is the same everywhere."""
    spread = np.var(p)
    scale = np.mean((p - p.mean()) * (t - t.mean())) / spread if spread > np.square(1e-9 * p.mean()) else 0.0
    return np.asarray(scale * (p - p.mean()) + t.mean())


def _deltas(p: Float[np.ndarray, " n"], t: Float[np.ndarray, " n"]) -> dict[str, float]:
    ratio = np.full(len(p), np.inf)
    positive = p > 0
    ratio[positive] = np.maximum(p[positive] / t[positive], t[positive] / p[positive])
    return {f"delta{k}": float(np.mean(ratio < _RATIO**k)) for k in (1, 2, 3)}


def inside(crop: Crop, height: int, width: int, *, name: str) -> Bool[np.ndarray, "Y X"]:
    """Where a picture is judged.

    Args:
        name: Of the picture, for messages.

    Raises:
        DataError: The picture has a size that the crop is not meant for.
    """
    found = np.ones((height, width), bool)
    if crop == "none":
        return found
    place: tuple[slice, ...]
    if crop == "eigen":
        (size, place), takes = _EIGEN, "NYU Depth's of 640x480"
        fits = (height, width) == size
    else:
        (low, high), (narrow, wide) = _KITTI
        fits, takes = low <= height <= high and narrow <= width <= wide, "KITTI's of 1216x352 to 1242x376"
        place = tuple(
            slice(int(start * side), int(stop * side))
            for side, (start, stop) in zip((height, width), _GARG, strict=True)
        )
    if not fits:
        raise DataError(f"depth.crop={crop} is for pictures like {takes}; {name} has {width}x{height}.")
    found[:] = False
    found[place] = True
    return found
