"""How many of the true neighbours a search finds, by brute force on a sample of its queries, and how wide it must be therefore.

Axes: Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Int

from dinoforge.features.compressed import Width

ROUNDING = 1e-3
"""By how much two similarities may differ and be the same: descriptors are kept in float16."""
_LOST = 0.0005
"""Share of the true pairs that may lie below the floor of a search: those whose codes are worst."""

Found: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Rows of the database and their similarities, ``[Q K]`` each."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a search found."""

    index: Int[np.ndarray, "Q K"]
    """Rows of the database; -1 where there is none."""
    similarity: Float32[np.ndarray, "Q K"]
    """-inf where there is none."""
    score: Float32[np.ndarray, "Q K"]
    """What their codes said."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some of the queries and what is true of them."""

    rows: Int[np.ndarray, " Q"]
    """Numbers of the queries."""
    true: Found
    threshold: float
    """Pairs above it must not be missed."""
    itself: bool
    """Whether queries and database are the same rows, so that a pair is found where either finds the other."""


def wide_enough(
    sample: Sample, wanted: float, *, first: Width, wider: Callable[[Width], list[Width]],
    search: Callable[[Int[np.ndarray, " n"], Width], Scored],
) -> tuple[float, Width]:  # fmt: skip
    """The first width at which the share of true pairs that is wanted is found, and that share; else the best there is."""

    def tried(width: Width) -> tuple[float, Width]:
        near = search(sample.rows, width)
        known = near.score[near.similarity > sample.threshold]
        if len(known) and np.isfinite(sample.threshold) and sample.threshold > -1:
            width = replace(width, floor=float(np.quantile(known, _LOST, method="lower")))
        found = near.index, np.where(near.score >= width.floor, near.similarity, -np.inf).astype(np.float32)
        found = np.where(np.isfinite(found[1]), found[0], -1), found[1]
        if sample.itself:
            found = _from_either_side(sample, found, search=lambda rows: search(rows, width).index)
        return pair_recall(found, sample.true, sample.threshold), width

    recall, width, tries = -1.0, first, [first]
    while tries:
        measured = [tried(width) for width in tries]
        enough = [one for one in measured if one[0] >= wanted]  # the first is the cheaper: codes before vectors
        recall, width = enough[0] if enough else max(measured, key=lambda one: one[0])
        tries = [] if recall >= wanted else wider(width)
    return recall, width


def _from_either_side(sample: Sample, near: Found, *, search: Callable[[np.ndarray], np.ndarray]) -> Found:
    """The neighbours of rows, and beside them those true ones above the threshold among whose own neighbours the row is."""
    rows, true = sample.rows, sample.true
    missed = (true[1] > sample.threshold) & ~(true[0][:, :, None] == near[0][:, None, :]).any(axis=-1)
    query, rank = np.nonzero(missed)
    if not len(query):
        return near
    others, place = np.unique(true[0][query, rank], return_inverse=True)
    seen = (search(others)[place] == rows[query][:, None]).any(axis=1)
    index, similarity = np.full(missed.shape, -1, dtype=np.int64), np.full(missed.shape, -np.inf, dtype=np.float32)
    at = query[seen], rank[seen]
    index[at], similarity[at] = true[0][at], true[1][at]
    return np.concatenate([near[0], index], axis=1), np.concatenate([near[1], similarity], axis=1)


def pair_recall(found: Found, true: Found, threshold: float) -> float:
    """Share of the true pairs (index, similarity) above the threshold that were found; 1 where there are none.

    Of true neighbours that are as near as the last one, any other as near counts as well.
    """
    hits = pairs = 0
    for index, similarity, at, near in zip(*found, *true, strict=True):
        wanted = near > threshold
        if not wanted.any():
            continue
        right = np.isin(index, at[wanted])
        last = near[wanted][-1]
        ties = int((np.abs(similarity[~right] - last) <= ROUNDING).sum())
        missed_ties = int(
            (np.abs(near[wanted] - last) <= ROUNDING).sum() - (np.abs(similarity[right] - last) <= ROUNDING).sum()
        )
        hits += int(right.sum()) + max(0, min(ties, missed_ties))
        pairs += int(wanted.sum())
    return hits / pairs if pairs else 1.0
