"""The nearest of many vectors by cosine: exactly where they are few, by FAISS's compressed index where they are many.

Axes: N vectors, D channels (E, where they must be as many and may not), Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int
from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.log import say
from dinoforge.base.random import numpy_generator
from dinoforge.features.compressed import SMALLEST_TRAINING, Compressed, Width, cells_for

_ROWS_AT_ONCE = 16_384
_ROUNDING = 1e-3
"""By how much two similarities may differ and be the same: those of the compressed index come from float16 vectors."""


class SearchConfig(Config):
    """How neighbours are found. What is found depends on the seed only where the search is not exact."""

    exact_below: Count = Field(default=100_000, ge=0)
    """Vectors below which all are compared."""
    recall: float = Field(default=0.99, gt=0, le=1)
    """Share of the true pairs that must be found, as measured on a sample; else the search is widened."""
    sample: int = Field(default=2000, ge=1)
    """Queries of each search that are also answered by brute force."""
    training: int = Field(default=128, ge=SMALLEST_TRAINING)
    """Vectors a cell that the index is trained on, as far as there are so many; never below 64."""
    seed: int = Field(default=0, ge=0)
    """Of the training set and the sample."""
    threads: int = Field(default=0, ge=0)
    """Of FAISS; 0 leaves them as they are (``OMP_NUM_THREADS``)."""


Found: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Rows of the database and their similarities, ``[Q K]`` each."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The K nearest of each query, nearest first; of equally near ones the first row."""

    index: Int[np.ndarray, "Q K"]
    """Rows of the database; -1 where the compressed index came to no more."""
    similarity: Float32[np.ndarray, "Q K"]
    """Cosine; -inf beside -1."""
    recall: float
    """Share of the sample's true pairs that were found, in a self-join from either side; 1 where all vectors were compared."""
    how: str
    """For the record: ``exact``, or the index with its figures."""


def search(
    queries: Float[np.ndarray, "Q D"],
    database: Float[np.ndarray, "N E"],
    *,
    count: int,
    threshold: float = -1.0,
    config: SearchConfig,
) -> Neighbours:
    """The ``count`` nearest rows of the database for each query, fewer where it has fewer.

    Above ``exact_below`` vectors, an inverted file with 4-bit product codes proposes candidates, whose cosines are then
    computed from float16 vectors: no similarity that is given comes from a code. How many true pairs are missed is measured
    in every search, against brute force on a sample of its own queries, and the search is widened until they are few enough.

    Args:
        threshold: Pairs above this cosine are those that must not be missed; what lies below is found as it comes.

    Raises:
        ConfigError: No neighbour asked for.
        DataError: Widths differ, or a vector is not finite.
    """
    return _search(queries, database, count, threshold, config=config, itself=False)


def self_search(
    vectors: Float[np.ndarray, "N D"], *, count: int, threshold: float = -1.0, config: SearchConfig
) -> Neighbours:
    """The ``count`` nearest *other* rows of each row; see ``search``.

    Asked for are the pairs above the threshold, and one is found where either row is among the neighbours of the other: codes
    err in each by themselves, so a search that misses one in ten from one side misses one in a hundred from both.
    """
    return _search(vectors, vectors, count, threshold, config=config, itself=True)


def _search(
    queries: np.ndarray, database: np.ndarray, count: int, threshold: float, *, config: SearchConfig, itself: bool
) -> Neighbours:
    if count < 1:
        raise ConfigError(f"a search for neighbours takes 1 or more; got {count}.")
    if queries.shape[1] != database.shape[1]:
        raise DataError(
            f"vectors of {queries.shape[1]} channels cannot be searched among those of {database.shape[1]}; "
            "both must come from one descriptor."
        )
    count = min(count, len(database) - itself)
    if count < 1 or not len(queries):
        empty = (len(queries), max(count, 0))
        return Neighbours(np.zeros(empty, np.int64), np.zeros(empty, np.float32), 1.0, "exact")
    with _threads(config.threads):
        if len(database) < config.exact_below or not cells_for(len(database)):
            found = _exact(queries, database, count + itself)
            return Neighbours(*(_without_self(*found, np.arange(len(queries))) if itself else found), 1.0, "exact")
        return _approximate(queries, database, count, threshold, config=config, itself=itself)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def unit_rows(rows: Float[np.ndarray, "n D"], *, first: int = 0) -> Float32[np.ndarray, "n D"]:
    """Rows of length 1 in float32; one of zeros stays so.

    Args:
        first: Number of the first row, for the message.

    Raises:
        DataError: A number that is not finite.
    """
    x = np.ascontiguousarray(rows, dtype=np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise DataError(f"vector {first + int(np.isfinite(length).argmin())} holds a number that is not finite.")
    found: np.ndarray = x / np.maximum(length, 1e-12)
    return found


def _parts(rows: np.ndarray) -> Iterator[tuple[int, Float32[np.ndarray, "n D"]]]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        yield start, unit_rows(rows[start : start + _ROWS_AT_ONCE], first=start)


def _exact(queries: np.ndarray, database: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Brute force, part of the database after part; of equally near ones the first rows."""
    similarity = np.full((len(queries), count), -np.inf, dtype=np.float32)
    index = np.full((len(queries), count), -1, dtype=np.int64)
    for start, rows in _parts(database):
        for first, asked in _parts(queries):
            some = slice(first, first + len(asked))
            near, at = faiss.knn(asked, rows, min(count, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
            both = np.concatenate([similarity[some], near], axis=1), np.concatenate([index[some], at + start], axis=1)
            order = np.lexsort((both[1], -both[0]), axis=1)[:, :count]
            similarity[some], index[some] = (np.take_along_axis(found, order, axis=1) for found in both)
    return index, similarity


def _without_self(
    index: np.ndarray, similarity: np.ndarray, own: Int[np.ndarray, " Q"]
) -> tuple[np.ndarray, np.ndarray]:
    """Each query's own row taken out; where many equal rows pushed it out, the last."""
    drop = index == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (len(index), index.shape[1] - 1)
    return index[~drop].reshape(shape), similarity[~drop].reshape(shape)


def _approximate(
    queries: np.ndarray, database: np.ndarray, count: int, threshold: float, *, config: SearchConfig, itself: bool
) -> Neighbours:
    index = Compressed.train(database, training=config.training, seed=config.seed)
    for start, rows in _parts(database):
        index.add(rows, first=start)

    def found(rows: np.ndarray, width: Width) -> tuple[np.ndarray, np.ndarray]:
        at, near = index.search(unit_rows(queries[rows]), count + itself, width)
        return _without_self(at, near, rows) if itself else (at, near)

    rng = numpy_generator(config.seed, "recall sample")
    sample = np.sort(rng.choice(len(queries), min(config.sample, len(queries)), replace=False))
    true = _exact(queries[sample], database, count + itself)
    true = _without_self(*true, sample) if itself else true
    width, recall = index.narrowest, -1.0
    tries = [width]

    def measured_at(width: Width) -> float:
        near = found(sample, width)
        if itself:
            near = _from_either_side(sample, near, true, threshold, search=lambda rows: found(rows, width))
        return pair_recall(near, true, threshold)

    while tries:
        measured = [(measured_at(wider), wider) for wider in tries]
        enough = [one for one in measured if one[0] >= config.recall]  # the first is the cheaper: codes before vectors
        recall, width = enough[0] if enough else max(measured, key=lambda one: one[0])
        tries = [] if recall >= config.recall else index.wider(width, count=count)
    about = f"{index.name}, {width.cells} cells, {width.candidates} candidates a neighbour"
    say(
        f"Search of {len(database):,} vectors: {about}; {recall:.4f} of the pairs found of {len(sample):,} sampled queries."
    )
    if recall < config.recall:
        say(f"The search cannot be widened further and misses the {config.recall:g} that was asked for.")
    at, near = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), _ROWS_AT_ONCE):  # joined from parts, they would be held twice
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(queries)))
        at[rows], near[rows] = found(rows, width)
    return Neighbours(at, near, recall, about)


def _from_either_side(
    rows: Int[np.ndarray, " Q"], near: Found, true: Found, threshold: float, *, search: Callable[[np.ndarray], Found]
) -> Found:
    """The neighbours of rows, and beside them those true ones above the threshold among whose own neighbours the row is."""
    missed = (true[1] > threshold) & ~(true[0][:, :, None] == near[0][:, None, :]).any(axis=-1)
    query, rank = np.nonzero(missed)
    if not len(query):
        return near
    others, place = np.unique(true[0][query, rank], return_inverse=True)
    seen = (search(others)[0][place] == rows[query][:, None]).any(axis=1)
    index, similarity = np.full(missed.shape, -1, dtype=np.int64), np.full(missed.shape, -np.inf, dtype=np.float32)
    at = query[seen], rank[seen]
    index[at], similarity[at] = true[0][at], true[1][at]
    return np.concatenate([near[0], index], axis=1), np.concatenate([near[1], similarity], axis=1)


def pair_recall(found: tuple[np.ndarray, np.ndarray], true: tuple[np.ndarray, np.ndarray], threshold: float) -> float:
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
        ties = int((np.abs(similarity[~right] - last) <= _ROUNDING).sum())
        missed_ties = int(
            (np.abs(near[wanted] - last) <= _ROUNDING).sum() - (np.abs(similarity[right] - last) <= _ROUNDING).sum()
        )
        hits += int(right.sum()) + max(0, min(ties, missed_ties))
        pairs += int(wanted.sum())
    return hits / pairs if pairs else 1.0
