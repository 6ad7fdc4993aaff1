"""Near copies by descriptors of a network: cosines, on request whitened and freed of what is near to everything.

Thresholds are those of DINOv2 (app. A) for SSCD; whitening and score normalisation are SSCD's (Pizzi et al. 2022, sec. 4.3).

Axes: N images, Q queries, D numbers of a descriptor (E, where they must be as many and may not), K of them after whitening,
B background images, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from dinoforge.base.errors import DataError
from dinoforge.base.random import numpy_generator
from dinoforge.features.copies import unit
from dinoforge.features.mapped import Picked, blocks
from dinoforge.features.pairs import NEIGHBOURS, Pairs, joined
from dinoforge.features.search import Neighbours, SearchConfig, search, self_search
from dinoforge.features.whiten import Whitening, fit_whitening, score_normalised

RANKS = 3
"""Nearest background images whose mean similarity is taken off, as published."""
_SAMPLE = 100_000
"""Descriptors that whitening is fitted to at most."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How descriptors of one network are compared; without either part, by their cosine."""

    whitening: Whitening | None = None
    background: Float32[np.ndarray, "B K"] | None = None
    """Images that are copies of nothing, as ``placed`` has them."""

    def placed(self, vectors: Float[np.ndarray, "N D"]) -> Float32[np.ndarray, "N K"]:
        """Descriptors where their cosines count, at length 1; one of zeros, of an image that has none, stays so."""
        x = unit(vectors.astype(np.float32))
        if self.whitening is None or not len(x):
            return x
        return np.concatenate([self.whitening(some) * some.any(axis=1, keepdims=True) for some in blocks(x)])

    def bias(self, placed: Float32[np.ndarray, "Q K"], config: SearchConfig) -> Float32[np.ndarray, " Q"]:
        """What is taken off the similarities of each query."""
        if self.background is None:
            return np.zeros(len(placed), np.float32)
        return bias_of(search(placed, self.background, count=RANKS, config=config))

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it by name, for a file."""
        found = {} if self.background is None else {"background": self.background}
        if self.whitening is not None:
            found |= {"mean": self.whitening.mean, "directions": self.whitening.directions}
        return found

    @staticmethod
    def of(arrays: Mapping[str, np.ndarray]) -> Measure:
        """What ``arrays`` gave."""
        whitening = Whitening(arrays["mean"], arrays["directions"]) if "mean" in arrays else None
        return Measure(whitening, arrays.get("background"))


def bias_of(near: Neighbours) -> Float32[np.ndarray, " Q"]:
    """The mean similarity of each query to its ``RANKS`` nearest of the background."""
    return -score_normalised(np.zeros(len(near.index), np.float32), near.similarity, neighbours=RANKS)


def fit_measure(
    vectors: Float[np.ndarray, "N D"], *, whiten: bool, background: Float[np.ndarray, "B D"] | None
) -> Measure:
    """A measure for a pool: whitened by its own principal directions, relative to the background.

    Raises:
        DataError: Too few images for either.
    """
    whitening = None
    if whiten:
        rows = np.flatnonzero(vectors.any(axis=1))
        width = vectors.shape[1]
        if len(rows) <= width:
            raise DataError(
                f"pairs.whiten=true is fitted to more images than a descriptor has numbers, {width}; got {len(rows)}."
            )
        if len(rows) > _SAMPLE:
            rows = np.sort(numpy_generator(0, "whitening sample").choice(rows, _SAMPLE, replace=False))
        whitening = fit_whitening(Picked(vectors, rows, lambda some: unit(some.astype(np.float32))), width=width)
    plain = Measure(whitening)
    if background is None:
        return plain
    some = background[background.any(axis=1)]
    if len(some) < RANKS:
        raise DataError(f"background= takes at least {RANKS} images; got {len(some)}.")
    return Measure(whitening, plain.placed(some))


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs of a query and another row, not sorted, and how many of the true ones the search is known to find."""

    left: Int[np.ndarray, " P"]
    right: Int[np.ndarray, " P"]
    similarity: Float32[np.ndarray, " P"]
    recall: float


def learnt_pairs(
    vectors: Float[np.ndarray, "N D"], measure: Measure, *, above: float, config: SearchConfig, count: int = NEIGHBOURS
) -> tuple[Pairs, float]:
    """All pairs among images whose cosine is above a number, with their similarities, and the recall of the search."""
    x = measure.placed(vectors)
    found = found_above(self_search(x, count=count, threshold=above, config=config), measure.bias(x, config), above)
    return joined(found.left, found.right, found.similarity), found.recall


def learnt_across(
    queries: Float[np.ndarray, "Q D"], database: Float[np.ndarray, "N E"], measure: Measure, *,
    above: float, config: SearchConfig, count: int = NEIGHBOURS,
) -> Found:  # fmt: skip
    """The same of pairs of a query, left, and a row of the database, right.

    Raises:
        DataError: Descriptors of unequal widths.
    """
    if queries.shape[1] != database.shape[1]:
        raise DataError(f"descriptors of width {queries.shape[1]} and of width {database.shape[1]} cannot be compared.")
    return placed_across(
        measure.placed(queries), measure.placed(database), measure, above=above, config=config, count=count
    )


def placed_across(
    x: Float32[np.ndarray, "Q K"], y: Float32[np.ndarray, "N K"], measure: Measure, *,
    above: float, config: SearchConfig, count: int = NEIGHBOURS,
) -> Found:  # fmt: skip
    """The same of descriptors that are placed already, see ``Measure``."""
    return found_above(search(x, y, count=count, threshold=above, config=config), measure.bias(x, config), above)


def found_above(near: Neighbours, bias: Float32[np.ndarray, " Q"], above: float) -> Found:
    """The neighbours whose cosine is above a number, the bias of their query taken off."""
    query, rank = np.nonzero(near.similarity > above)
    similarity = near.similarity[query, rank] - bias[query]
    return Found(query, near.index[query, rank], similarity.astype(np.float32), near.recall)
