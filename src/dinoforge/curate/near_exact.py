"""Near-exact copies by hashes: recompressed or resized a little, found without comparing every image with every other.

DINOv2 (sec. 3) removes them so before anything that costs more. What is hashed there was never published; here it is the
descriptor that needs no weights: the signs of its first principal components, fitted to the pool. Hashes of unlike pictures
may meet, so those that meet count as copies only where their descriptors are almost the same.

Axes: N images, n of them that are hashed, D numbers of a descriptor.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Num
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.base.random import numpy_generator
from dinoforge.curate.components import deduplicated
from dinoforge.curate.why import Dropped
from dinoforge.features.compressed import Rows
from dinoforge.features.copies import unit
from dinoforge.features.mapped import Picked, blocks
from dinoforge.features.pairs import Pairs, joined
from dinoforge.features.whiten import BITS, fit_whitening, hash_pairs, pca_hash

STAGE = "near-exact copies"
_SAMPLE = 100_000
"""Descriptors that the components are fitted to at most."""


class HashConfig(Config):
    """When two pictures are one by their hashes."""

    distance: int = Field(default=2, ge=0, le=7)
    """Bits of 64 in which two hashes may differ."""
    similarity: float = Field(default=0.99, ge=0, lt=1)
    """Cosine of the descriptors that pictures whose hashes meet must have."""


def hash_copies(descriptors: Rows, *, size: Num[np.ndarray, " N"] | None, config: HashConfig) -> Dropped:
    """All images but the representative of each group of near-exact copies, see ``deduplicated``.

    Flat pictures, whose descriptors are zeros, are copies of nothing.
    """
    dropped = deduplicated(near_exact(descriptors, config=config), images=len(descriptors), size=size)
    reason = np.full(len(dropped), "near-exact copy")
    return Dropped(dropped.row, reason, dropped.against, dropped.similarity, STAGE)


def near_exact(descriptors: Rows, *, config: HashConfig) -> Pairs:
    """The pairs that link near-exact copies; of rows with equal hashes each is compared with the first alone."""
    rows = np.flatnonzero(np.concatenate([np.zeros(0, bool), *(part.any(axis=1) for part in blocks(descriptors))]))
    if len(rows) < 2:
        return joined(rows[:0], rows[:0], np.zeros(0, np.float32))
    sample = rows
    if len(rows) > _SAMPLE:
        sample = np.sort(numpy_generator(0, "hash sample").choice(rows, _SAMPLE, replace=False))
    # So many vectors span no more directions; signs along any other would be those of rounding.
    width = min(BITS, descriptors.shape[1], len(sample) - 1)
    whitening = fit_whitening(Picked(descriptors, sample), width=width, whiten=False)
    hashes = np.concatenate([pca_hash(descriptors[some], whitening) for some in blocks(rows)])
    left, right = rows[hash_pairs(hashes, distance=config.distance)]
    cosines = [
        np.einsum("nd,nd->n", *(unit(descriptors[side].astype(np.float32)) for side in (one, other)))
        for one, other in zip(blocks(left), blocks(right), strict=True)
    ]
    return joined(left, right, np.concatenate([np.zeros(0, np.float32), *cosines])).above(config.similarity)
