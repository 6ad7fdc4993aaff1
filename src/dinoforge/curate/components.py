"""Near copies as groups (``components`` of the graph of pairs), one image kept of each (DINOv2, sec. 3 and app. A).

Components can chain: a is like b and b like c, and c need not be like a. The paper accepts that; ``largest`` shows it.

Axes: N images, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num

from dinoforge.curate.why import Dropped
from dinoforge.features.pairs import Pairs, components, joined

STAGE = "near copies"


def merged(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several shards as one."""
    return joined(
        *(
            np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in (("left", np.int64), ("right", np.int64), ("similarity", np.float32))
        )
    )


def representatives(
    component: Int[np.ndarray, " N"], *, size: Num[np.ndarray, " N"] | None = None
) -> Int[np.ndarray, " N"]:
    """For each image the one that is kept for it: the largest of its component, of equally large ones the lowest row.

    Args:
        size: Pixels of each image, or whatever else is better when larger; without it the lowest row is kept.
    """
    rank = np.zeros(len(component)) if size is None else size
    order = np.lexsort((np.arange(len(component)), -rank, component))
    at = np.searchsorted(component[order], component)
    return order[at]


def deduplicated(pairs: Pairs, *, images: int, size: Num[np.ndarray, " N"] | None = None) -> Dropped:
    """All images but the representative of each component.

    The reason is ``near copy`` where it was itself found to be like the one that stays, whose similarity is given then, else
    ``near copy of a copy``.
    """
    keeper = representatives(components(pairs, images=images), size=size)
    row = np.flatnonzero(keeper != np.arange(images))
    similarity = between(pairs, row, keeper[row])
    reason = np.where(np.isnan(similarity), "near copy of a copy", "near copy")
    return Dropped(row, reason, keeper[row], similarity, STAGE)


def between(pairs: Pairs, one: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]) -> Num[np.ndarray, " n"]:
    """The similarity of each two rows as the pairs have it; NaN where they are no pair."""
    found = np.full(len(one), np.nan, dtype=np.float32)
    if len(pairs) and len(one):
        span = int(max(pairs.right.max(), one.max(), other.max())) + 1
        known = pairs.left * span + pairs.right
        wanted = np.minimum(one, other) * span + np.maximum(one, other)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        hit = known[at] == wanted
        found[hit] = pairs.similarity[at[hit]]
    return found


def largest(component: Int[np.ndarray, " N"], *, count: int = 10) -> list[tuple[int, int]]:
    """The largest components as (lowest row, images), for the report: a very large one is a chain."""
    label, sizes = np.unique(component, return_counts=True)
    order = np.lexsort((label, -sizes))[:count]
    return [(int(label[at]), int(sizes[at])) for at in order if sizes[at] > 1]
