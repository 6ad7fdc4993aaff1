"""Removal of near copies of evaluation images from a pool (DINOv2, sec. 3 and app. A).

Axes: N images of a pool, E evaluation images; in pairs, rows 0 to N-1 are the pool's, N to N+E-1 those of evaluation.
"""

from __future__ import annotations

import numpy as np

from dinoforge.curate.why import Dropped
from dinoforge.features.pairs import Pairs, components

STAGE = "evaluation sets"


def leaks(pairs: Pairs, *, pool: int, evaluation: int, direct_only: bool = False) -> Dropped:
    """The images of the pool that are copies of an evaluation image, ``against`` as a row of the evaluation images, from 0.

    As in the paper every component that holds an evaluation image goes whole: images that are like one that is like it too
    (reason ``linked to an evaluation image``, against the lowest evaluation row of the component).

    Args:
        pairs: Among pool and evaluation images together, above the threshold (0.45 for trained descriptors).
        direct_only: Take only what is itself like an evaluation image: for pools in which components chain too far.
    """
    crossing = (pairs.left < pool) & (pairs.right >= pool)
    left, right, similarity = pairs.left[crossing], pairs.right[crossing] - pool, pairs.similarity[crossing]
    order = np.lexsort((right, -similarity, left))
    row, first = np.unique(left[order], return_index=True)
    best = order[first]
    against, near = right[best], similarity[best]
    reason = np.full(len(row), "copy of an evaluation image", dtype="<U40")
    if not direct_only:
        component = components(pairs, images=pool + evaluation)
        held = np.full(pool + evaluation, -1)
        # Written from the last to the first, so that the lowest evaluation row of a component stays.
        held[component[pool:][::-1]] = np.arange(evaluation)[::-1]
        linked = np.setdiff1d(np.flatnonzero(held[component[:pool]] >= 0), row)
        row = np.concatenate([row, linked])
        against = np.concatenate([against, held[component[linked]]])
        near = np.concatenate([near, np.full(len(linked), np.nan, np.float32)])
        reason = np.concatenate([reason, np.full(len(linked), "linked to an evaluation image", dtype="<U40")])
    order = np.argsort(row, kind="stable")
    return Dropped(row[order], reason[order], against[order], near[order].astype(np.float32), STAGE)
