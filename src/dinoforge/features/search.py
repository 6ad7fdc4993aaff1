"""The nearest of many vectors by cosine: exactly where they are few, by FAISS's compressed index where they are many.

Axes: N vectors, D channels (E, where they must be as many and may not), Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int
from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.log import say
from dinoforge.base.random import numpy_generator
from dinoforge.features.compressed import (
    SMALLEST_TRAINING,
    Candidates,
    Compressed,
    Rows,
    Width,
    candidates_in,
    cells_for,
)
from dinoforge.features.exact import ROWS_AT_ONCE, compared, nearest_of_all, parts, unit_rows
from dinoforge.features.recall import Found, Sample, Scored, wide_enough


class SearchConfig(Config):
    """How neighbours are found. What is found depends on the seed only where the search is not exact."""

    exact_below: Count = Field(default=100_000, ge=0)
    """Vectors below which all are compared."""
    recall: float = Field(default=0.99, gt=0, le=1)
    """Share of the true pairs that must be found, as measured on a sample; else the search is widened."""
    sample: int = Field(default=2000, ge=1)
    """Queries of each search that are also answered by brute force; where there are no more, that is the answer."""
    training: int = Field(default=128, ge=SMALLEST_TRAINING)
    """Vectors a cell that the index is trained on, as far as there are so many; never below 64."""
    seed: int = Field(default=0, ge=0)
    """Of the training set and the sample."""
    threads: int = Field(default=0, ge=0)
    """Of FAISS; 0 leaves them as they are (``OMP_NUM_THREADS``)."""


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

    Above ``exact_below`` vectors, and ``sample`` queries, an inverted file with 4-bit product codes proposes candidates, whose
    cosines are then computed from the vectors: no similarity that is given comes from a code. How many true pairs are missed is
    measured in every search, against brute force on a sample of its own queries, and the search is widened until they are few
    enough.

    Args:
        threshold: Pairs above this cosine are those that must not be missed; what lies below is found as it comes, or not:
            compared are only candidates whose codes score as those of pairs above it do.

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
    count = checked(queries, database, count, itself=itself)
    if count < 1 or not len(queries):
        empty = (len(queries), count)
        return Neighbours(np.zeros(empty, np.int64), np.zeros(empty, np.float32), 1.0, "exact")
    with threads(config.threads):
        if by_brute_force(queries, database, config):
            found = nearest_of_all(queries, database, count + itself)
            return Neighbours(*(_without_self(*found, np.arange(len(queries))) if itself else found), 1.0, "exact")
        return _approximate(queries, database, count, threshold, config=config, itself=itself)


def checked(queries: Rows, database: Rows, count: int, *, itself: bool) -> int:
    """How many neighbours there can be.

    Raises:
        ConfigError, DataError: As ``search``.
    """
    if count < 1:
        raise ConfigError(f"a search for neighbours takes 1 or more; got {count}.")
    if queries.shape[1] != database.shape[1]:
        raise DataError(
            f"vectors of {queries.shape[1]} channels cannot be searched among those of {database.shape[1]}; "
            "both must come from one descriptor."
        )
    return max(min(count, len(database) - itself), 0)


def by_brute_force(queries: Rows, database: Rows, config: SearchConfig) -> bool:
    """Whether all are compared: an index is no gain among few vectors, nor for queries that its sample would ask anyway."""
    return len(database) < config.exact_below or not cells_for(len(database)) or len(queries) <= config.sample


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many of FAISS meanwhile; 0 leaves them as they are."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _approximate(
    queries: Rows, database: Rows, count: int, threshold: float, *, config: SearchConfig, itself: bool
) -> Neighbours:
    index = Compressed.train(database, training=config.training, seed=config.seed)
    for start, rows in parts(database):
        index.add(rows, first=start)
    sought = Sought(queries, database, count, itself)

    def found(rows: np.ndarray, width: Width) -> Scored:
        asked = sought.asked(rows)
        return sought.nearest(rows, asked, candidates_in([index], asked, sought.most(width), width))

    rows = sampled(len(queries), config)
    true = sought.true(rows, nearest_of_all(sought.asked(rows), database, count + itself))
    recall, width = wide_enough(
        Sample(rows, true, threshold, itself), config.recall, first=index.narrowest, search=found,
        wider=lambda width: index.wider(width, count=count, total=len(database)),
    )  # fmt: skip
    about = told(index.name, width, recall, sought, config)
    at, near = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), ROWS_AT_ONCE):  # joined from parts, they would be held twice
        some = np.arange(start, min(start + ROWS_AT_ONCE, len(queries)))
        part = found(some, width)
        at[some], near[some] = part.index, part.similarity
    return Neighbours(at, near, recall, about)


def sampled(queries: int, config: SearchConfig) -> Int[np.ndarray, " Q"]:
    """The queries that are also answered by brute force."""
    rng = numpy_generator(config.seed, "recall sample")
    return np.sort(rng.choice(queries, min(config.sample, queries), replace=False))


def told(name: str, width: Width, recall: float, sought: Sought, config: SearchConfig) -> str:
    """How neighbours are found, for the record; the person at the terminal hears it too."""
    about = f"{name}, {width.cells} cells, {width.candidates} candidates a neighbour"
    sample = min(config.sample, len(sought.queries))
    say(
        f"Search of {len(sought.database):,} vectors: {about}; {recall:.4f} of the pairs found of {sample:,} sampled queries."
    )
    if recall < config.recall:
        say(f"The search cannot be widened further and misses the {config.recall:g} that was asked for.")
    return about


@dataclass(frozen=True, slots=True)
class Sought:
    """Whose neighbours are sought, among what, and how many."""

    queries: Rows
    database: Rows
    count: int
    itself: bool
    """Whether they are the same rows, and none is its own neighbour."""

    def asked(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n D"]:
        """Queries of these numbers, at length 1."""
        return unit_rows(self.queries[rows])

    def most(self, width: Width) -> int:
        """Candidates of each query."""
        return (self.count + self.itself) * width.candidates

    def true(self, rows: Int[np.ndarray, " n"], found: Found) -> Found:
        """What brute force found of queries of these numbers, without themselves."""
        return _without_self(*found, rows) if self.itself else found

    def nearest(self, rows: Int[np.ndarray, " n"], asked: Float32[np.ndarray, "n D"], candidates: Candidates) -> Scored:
        """The nearest of the candidates of queries of these numbers, compared exactly."""
        if self.itself:
            candidates = candidates.where(candidates.row != rows[candidates.query])
        similarity = compared(asked, candidates, self.database)
        order = np.lexsort((candidates.row, -similarity, candidates.query))
        query = candidates.query[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        order, query, rank = (x[rank < self.count] for x in (order, query, rank))
        shape = len(rows), self.count
        found = Scored(np.full(shape, -1), *(np.full(shape, -np.inf, np.float32) for _ in range(2)))
        held = candidates.row, similarity, candidates.score
        for into, values in zip((found.index, found.similarity, found.score), held, strict=True):
            into[query, rank] = values[order]
        return found


def _without_self(
    index: np.ndarray, similarity: np.ndarray, own: Int[np.ndarray, " Q"]
) -> tuple[np.ndarray, np.ndarray]:
    """Each query's own row taken out; where many equal rows pushed it out, the last."""
    drop = index == own[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = (len(index), index.shape[1] - 1)
    return index[~drop].reshape(shape), similarity[~drop].reshape(shape)
