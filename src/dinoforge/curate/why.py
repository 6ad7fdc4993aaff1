"""Why an image is in, and why another is not: one typed column a fact, rows of a pool by number.

Axes: n rows of a pool, kept or dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Shaped

NOBODY = -1
"""Stands where no other row is to blame."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that go. Each stands here once for a stage."""

    row: Int[np.ndarray, " n"]
    reason: Shaped[np.ndarray, " n"]
    """Texts, from a short list of each stage."""
    against: Int[np.ndarray, " n"]
    """The row that stays for it, or the evaluation row it is a copy of; -1 for none."""
    similarity: Float32[np.ndarray, " n"]
    """To ``against``; NaN where the two were not compared, or nothing was."""
    stage: str

    def __len__(self) -> int:
        return len(self.row)

    @staticmethod
    def alone(row: Int[np.ndarray, " n"], reason: Shaped[np.ndarray, " n"], *, stage: str) -> Dropped:
        """Rows that go for what they are themselves."""
        return Dropped(row, reason, np.full(len(row), NOBODY), np.full(len(row), np.nan, np.float32), stage)

    def kept(self, images: int) -> Int[np.ndarray, " m"]:
        """The rows of so many images that stay."""
        stays = np.ones(images, dtype=bool)
        stays[self.row] = False
        return np.flatnonzero(stays)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows that a retrieval brought, in its order; a row stands several times where multiplicity is kept."""

    row: Int[np.ndarray, " n"]
    seed_set: Int[np.ndarray, " n"]
    """Number of the seed set that asked for it."""
    seed: Int[np.ndarray, " n"]
    """Row of the seed, in its set, that it is near to; -1 where a whole cluster was chosen."""
    rank: Int[np.ndarray, " n"]
    """0 for the seed's nearest; -1 where a whole cluster was chosen."""
    similarity: Float32[np.ndarray, " n"]
    """Cosine to the seed; NaN where a whole cluster was chosen."""
    cluster: Int[np.ndarray, " n"]
    """Cluster of the pool that was chosen; -1 where neighbours were."""

    def __len__(self) -> int:
        return len(self.row)

    def take(self, places: Int[np.ndarray, " m"]) -> Chosen:
        """The given places, in the given order."""
        return Chosen(
            self.row[places],
            self.seed_set[places],
            self.seed[places],
            self.rank[places],
            self.similarity[places],
            self.cluster[places],
        )

    def once(self) -> Chosen:
        """Each row once, by its most similar seed, in order of the rows; of equally good reasons the first."""
        similarity = np.where(np.isnan(self.similarity), -np.inf, self.similarity)
        order = np.lexsort((np.arange(len(self)), -similarity, self.row))
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = self.row[order][1:] != self.row[order][:-1]
        return self.take(order[fresh])


def together(parts: Sequence[Chosen]) -> Chosen:
    """What several seed sets brought, one after the other.

    Raises:
        ValueError: No part at all.
    """
    if not parts:
        raise ValueError("together takes at least one retrieval.")
    columns = ("row", "seed_set", "seed", "rank", "similarity", "cluster")
    return Chosen(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
