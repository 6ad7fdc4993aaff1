"""The score card of a run: what is measured of its features without labels, at every look on the same images.

Axes: N images, D channels, H by W patches, Q images whose neighbours are compared.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from dinoforge.evaluate.health import effective_rank, neighbour_stability, smoothness, uniformity
from dinoforge.features.extract import Seen
from dinoforge.features.nearest import nearest

DENSE = 32
"""First images whose patch features are kept: of ViT-g at 518 pixels these are 0.25 GiB."""
_ASKED = 256
"""First images whose neighbours, among all, are compared from look to look."""
_NEIGHBOURS = 10

Neighbours = list[list[int]]
"""A row of the source and its neighbours', for each image asked; plain numbers, so that a checkpoint can hold them."""


def card(seen: Seen, last: Neighbours | None) -> tuple[dict[str, float], Neighbours | None]:
    """Scores of one look, and the neighbours that the next look compares its own with.

    ``rank`` and ``uniformity`` are of the image features, ``smoothness`` of the patch features where there are any,
    ``stability`` of the neighbours where the last look was at the same images. NaN where features are not finite.

    Args:
        last: What the last look returned.
    """
    fine = bool(seen.image.isfinite().all())
    scores = {
        "rank": effective_rank(seen.image) if fine else math.nan,
        "uniformity": uniformity(seen.image) if fine else math.nan,
    }
    if len(seen.patches):
        scores["smoothness"] = smoothness(seen.patches)
    if not fine:
        return scores, None
    found = seen.rows[nearest(seen.image, queries=_ASKED, count=_NEIGHBOURS).numpy()]
    now = np.concatenate([seen.rows[:_ASKED, None], found], axis=1)
    before = np.asarray(last if last else [], dtype=np.int64)
    if before.shape == now.shape and np.array_equal(before[:, 0], now[:, 0]):
        scores["stability"] = neighbour_stability(*(torch.from_numpy(rows[:, 1:]) for rows in (before, now)))
    return scores, now.tolist()
