"""What the searches of the stage ``pairs`` find, in the memory of this process or by tasks: the same.

Axes: N rows, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from dinoforge.curate.components import merged
from dinoforge.curate.searched import Searches
from dinoforge.curate.state import State
from dinoforge.features.copies import mirrored
from dinoforge.features.learnt import RANKS, Measure, bias_of, found_above, learnt_across, learnt_pairs
from dinoforge.features.mapped import Picked
from dinoforge.features.pairs import (
    Candidates,
    LayoutConfig,
    Pairs,
    centre_of,
    cross_candidates,
    joined,
    pairs_of,
    self_candidates,
)
from dinoforge.features.sharded import ShardedNeighbours

Proposed = dict[str, tuple[Iterable[Candidates], float]]
"""``pool``, and ``keep_out`` where there are evaluation images: candidates by rows of the pool, behind which those of the
evaluation images are; and the recall of the search."""


def layout_in_memory(state: State, config: LayoutConfig) -> Proposed:
    """Candidates by the descriptor that needs no weights."""
    pool, rows = state.pool, state.alive
    within = self_candidates(pool.descriptors[rows], config=config)
    found: Proposed = {"pool": ([_called(within, rows, rows)], within.recall)}
    if state.keep_out is not None:
        asked, centred = state.keep_out.whole, _Centred(centre_of(Picked(pool.descriptors, rows)))
        own, others = centred(pool.descriptors[rows]), centred(state.keep_out.descriptors[asked])
        across = cross_candidates(own, others, config=config)
        found["keep_out"] = [_called(across, rows, asked + len(pool))], across.recall
    return found


def layout_by_tasks(state: State, searches: Searches) -> Proposed:
    """The same of more images than this process searches by itself."""
    pool, rows, config = state.pool, state.alive, searches.config
    centred = _Centred(centre_of(Picked(pool.descriptors, rows)))
    own = searches.vectors("pool", Picked(pool.descriptors, rows, centred))
    asked = [own]
    if config.mirror:
        asked.append(searches.vectors("mirrored", Picked(pool.descriptors, rows, replace(centred, mirror=True))))
    near = [searches.within(own), *(searches.among(one, own, "mirror images") for one in asked[1:])]
    found: Proposed = {"pool": (_above(near, config.candidate, rows, rows, itself=True), min(x.recall for x in near))}
    if state.keep_out is not None:
        theirs = state.keep_out.whole
        others = searches.vectors("keep_out", Picked(state.keep_out.descriptors, theirs, centred))
        far = [searches.among(one, others, "keep_out") for one in asked]
        behind = theirs + len(pool)
        found["keep_out"] = _above(far, config.candidate, rows, behind, itself=False), min(x.recall for x in far)
    return found


@dataclass(frozen=True, slots=True)
class _Centred:
    """Descriptors as they are compared."""

    centre: Float32[np.ndarray, " D"]
    mirror: bool = False

    def __call__(self, rows: Float[np.ndarray, "n D"]) -> Float32[np.ndarray, "n D"]:
        found: np.ndarray = rows.astype(np.float32) - self.centre
        return mirrored(found) if self.mirror else found


def _above(
    near: Sequence[ShardedNeighbours], threshold: float, left: Int[np.ndarray, " N"], right: Int[np.ndarray, " M"], *,
    itself: bool,
) -> Iterator[Candidates]:  # fmt: skip
    """The neighbours above the threshold, part after part; those of mirror images are the second of ``near``.

    Args:
        left: What the queries are called.
        right: What the rows of the database are called.
        itself: Whether they are the same rows, so that of two that find each other one pair is made.
    """
    for turn, one in enumerate(near):
        for first, some in one:
            if itself:
                pairs = pairs_of(some, threshold=threshold, first=first)
                rows, others = pairs.left, pairs.right
            else:
                query, rank = np.nonzero(some.similarity > threshold)
                rows, others = query + first, some.index[query, rank]
            yield _called(Candidates(rows, others, np.full(len(rows), turn == 1)), left, right)


def _called(found: Candidates, left: Int[np.ndarray, " N"], right: Int[np.ndarray, " M"]) -> Candidates:
    return Candidates(left[found.left], right[found.right], found.flip)


Learnt = list[tuple[Pairs, float]]
"""Pairs of the searched rows, and the recall: within the pool and, where there are any, of it and the evaluation images."""


def learnt_in_memory(
    vectors: Float[np.ndarray, "N D"], asked: Float[np.ndarray, "M E"] | None, measure: Measure, config: LayoutConfig
) -> Learnt:
    """Pairs by cosines of learnt descriptors.

    Args:
        asked: Of the evaluation images.
    """
    words: dict[str, Any] = {"above": config.candidate, "config": config.search, "count": config.neighbours}
    found = [learnt_pairs(vectors, measure, **words)]
    if asked is not None:
        across = learnt_across(vectors, asked, measure, **words)
        found.append((Pairs(across.left, across.right, across.similarity), across.recall))
    return found


def learnt_by_tasks(
    vectors: Float[np.ndarray, "N D"], asked: Float[np.ndarray, "M E"] | None, measure: Measure, searches: Searches
) -> Learnt:
    """The same of more images than this process searches by itself."""
    own = searches.vectors("pool", Picked(vectors, np.arange(len(vectors)), measure.placed))
    near = [searches.within(own)]
    if asked is not None:
        others = searches.vectors("keep_out", Picked(asked, np.arange(len(asked)), measure.placed))
        near.append(searches.among(own, others, "keep_out"))
    away: ShardedNeighbours | None = None
    if measure.background is not None:
        theirs = searches.vectors("background", measure.background)
        away = searches.among(own, theirs, "background", count=RANKS, threshold=-1.0)
    return [(_learnt(one, away, searches.config.candidate, itself=not place), one.recall)
            for place, one in enumerate(near)]  # fmt: skip


def _learnt(near: ShardedNeighbours, away: ShardedNeighbours | None, above: float, *, itself: bool) -> Pairs:
    parts = []
    for (first, some), far in zip(near, away or [None] * len(near.parts), strict=True):
        bias = np.zeros(len(some.index), np.float32) if far is None else bias_of(far[1])
        found = found_above(some, bias, above)
        pairs = Pairs(found.left + first, found.right, found.similarity)
        parts.append(joined(pairs.left, pairs.right, pairs.similarity) if itself else pairs)
    if itself:
        return merged(parts)
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Pairs.__slots__))
