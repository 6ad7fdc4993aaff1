"""How well one region of a picture agrees with another: J, their overlap, and F, their outlines (Perazzi et al. 2016, sec. 5).

Axes: Y by X pixels, T frames.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from jaxtyping import Bool, Float64

SLACK = 0.008
"""How far apart outlines may lie and still agree, as a share of the picture's diagonal (the benchmark's own)."""
_QUARTERS = 4


def overlap(found: Bool[np.ndarray, "Y X"], true: Bool[np.ndarray, "Y X"]) -> float:
    """J: intersection over union; 1 where both are empty."""
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


def outline(region: Bool[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
    """Pixels that differ from the one to the right, the one below or the one below that; beyond the edge is like the edge."""
    beside = np.pad(region, ((0, 1), (0, 1)), mode="edge")
    found: np.ndarray = (region != beside[:-1, 1:]) | (region != beside[1:, :-1]) | (region != beside[1:, 1:])
    return found


def outline_agreement(found: Bool[np.ndarray, "Y X"], true: Bool[np.ndarray, "Y X"], *, slack: float = SLACK) -> float:
    """F: harmonic mean of the share of the found outline that lies near the true one, and the other way round.

    Near is within a disc of ``slack`` times the diagonal, in whole pixels, rounded up. 1 where neither has an outline, 0 where
    one of them has.
    """
    reach = math.ceil(slack * math.hypot(*found.shape))
    mine, theirs = outline(found), outline(true)
    if not mine.any() or not theirs.any():
        return float(mine.any() == theirs.any())
    precision, recall = float(_near(theirs, reach)[mine].mean()), float(_near(mine, reach)[theirs].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(pixels: Bool[np.ndarray, "Y X"], reach: int) -> Bool[np.ndarray, "Y X"]:
    """Pixels within ``reach`` of a marked one."""
    away = cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near: np.ndarray = away <= reach + 1e-3  # squares of distances are whole numbers: none lies so little beyond
    return near


def decay(values: Float64[np.ndarray, " T"]) -> float:
    """By how much a measure falls over a clip: its mean over the first quarter of the frames less that over the last.

    Quarters share the frames that lie on their borders, as in the benchmark's own code.
    """
    ends = np.rint(np.linspace(1, len(values), _QUARTERS + 1) + 1e-10).astype(np.int64) - 1
    first, last = (values[ends[n] : ends[n + 1] + 1].mean() for n in (0, _QUARTERS - 1))
    return float(first - last)
