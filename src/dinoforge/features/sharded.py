"""The search of ``search`` over files, each part of it a task: of ``executor.map`` of any ``concurrent.futures.Executor``.

One index is trained on a sample of all shards; each shard of the database is then encoded by a task, and each part of the
queries is searched by a task, which reads the codes of one shard after the other, keeps the best candidates of all, and
compares these exactly. What comes of it is what ``search`` finds in all vectors at once, pair for pair, however they are
divided: every shard proposes by the same codes and the same cells, and its best are among the best of all or below them.
Queries are taken in the same blocks, for products of matrices of other shapes are rounded otherwise; where a shard ends, the
last digit of a vector could so fall on the other side of a code's border, which no test has seen.

A task is a function of files. What it writes is whole or absent, its name ends in a key of all that it was made from, and one
that is there is not made again; so the same call goes on where it was killed.

Axes: N vectors, D channels, Q queries, n rows of a shard, K neighbours.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int
from pydantic import Field

from dinoforge.base.config import Config, Count, fingerprint, science
from dinoforge.base.errors import DataError
from dinoforge.base.files import write_atomic
from dinoforge.features.compressed import Candidates, Compressed, Probes, Width, best, candidates_in
from dinoforge.features.exact import ROWS_AT_ONCE, nearest_of_all, nearest_of_both, parts
from dinoforge.features.mapped import Stacked, mapped
from dinoforge.features.recall import Found, Sample, Scored, wide_enough
from dinoforge.features.search import Neighbours, SearchConfig, Sought, by_brute_force, checked, sampled, threads, told

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Runs a task on every job and gives the answers in any order, ``Executor.map`` for one. Both can be pickled. Answers are
taken one by one, and what is kept of them does not grow with their number."""


class ShardedConfig(Config):
    """How a search over shards is done; nothing here changes what is found."""

    queries: Count = Field(default=262_144, ge=1)
    """Vectors whose neighbours a task seeks, rounded up to whole blocks of 16,384. It holds them twice in float32, and reads
    the codes of all shards: many tasks read much."""


def _vectors(paths: Sequence[Path]) -> Stacked:
    """Vectors in several ``.npy`` files, ``[n D]`` each.

    Raises:
        DataError: A file that is none, or whose width is another.
    """
    for path in paths:
        array = mapped(path)
        if array.ndim != 2 or array.dtype.kind != "f":
            raise DataError(f"{path} holds {array.dtype} of shape {list(array.shape)}; vectors are floats in two axes.")
    return Stacked(paths)


@dataclass(frozen=True, slots=True)
class ShardedNeighbours:
    """Where the nearest of each query lie."""

    parts: tuple[Path, ...]
    """Of consecutive queries, from the first on."""
    recall: float
    how: str

    def __iter__(self) -> Iterator[tuple[int, Neighbours]]:
        """The number of the first query of each part, and their neighbours.

        Raises:
            DataError: A part was damaged since.
        """
        first = 0
        for path in self.parts:
            held = _read(path)
            if held is None:
                raise DataError(f"{path} is damaged, or gone; search again.")
            yield first, Neighbours(*held, self.recall, self.how)
            first += len(held[0])


def sharded_search(
    queries: Sequence[Path], database: Sequence[Path], *, count: int, threshold: float = -1.0, config: SearchConfig,
    sharded: ShardedConfig, folder: Path, each: Each,
) -> ShardedNeighbours:  # fmt: skip
    """What ``search`` finds in the vectors of files, see above.

    Args:
        queries: ``.npy`` files of vectors.
        database: The same; one shard each.
        folder: Where tasks leave what they made; readable wherever they run, as the vectors are.
        each: Runs the tasks.

    Raises:
        ConfigError, DataError: As ``search``; or a file that holds no vectors.
    """
    return _Shared(queries, database, count, threshold, config, sharded, folder, each, itself=False).run()


def sharded_self_search(
    vectors: Sequence[Path], *, count: int, threshold: float = -1.0, config: SearchConfig, sharded: ShardedConfig,
    folder: Path, each: Each,
) -> ShardedNeighbours:  # fmt: skip
    """What ``self_search`` finds in the vectors of files, see ``sharded_search``."""
    return _Shared(vectors, vectors, count, threshold, config, sharded, folder, each, itself=True).run()


@dataclass(frozen=True, slots=True)
class _Shared:
    """One search."""

    queries: Sequence[Path]
    database: Sequence[Path]
    count: int
    threshold: float
    config: SearchConfig
    sharded: ShardedConfig
    folder: Path
    each: Each
    itself: bool

    def run(self) -> ShardedNeighbours:
        queries, database = _vectors(self.queries), _vectors(self.database)
        count = checked(queries, database, self.count, itself=self.itself)
        made = [science(self.config), self.count, self.threshold, self.itself, queries.key, database.key]
        index = fingerprint([self.config.training, self.config.seed, database.key])
        self.folder.mkdir(parents=True, exist_ok=True)
        job = _Job(
            queries.paths, database.paths, count, self.itself, self.folder, fingerprint(made), index, self.config.threads
        )  # fmt: skip
        each = -(-self.sharded.queries // ROWS_AT_ONCE) * ROWS_AT_ONCE
        ranges = [(start, min(start + each, len(queries))) for start in range(0, len(queries), each)]
        if count < 1 or not ranges or by_brute_force(queries, database, self.config):
            return ShardedNeighbours(tuple(sorted(self.each(partial(_answered_exactly, job), ranges))), 1.0, "exact")
        recall, about, width = self._prepared(job, queries, database)
        return ShardedNeighbours(tuple(sorted(self.each(partial(_answered, job, width), ranges))), recall, about)

    def _prepared(self, job: _Job, queries: Stacked, database: Stacked) -> tuple[float, str, Width]:
        """The codes of all shards made, and how widely they are to be searched."""
        with threads(self.config.threads):
            if not job.trained.exists():
                index = Compressed.train(database, training=self.config.training, seed=self.config.seed)
                index.save(job.trained)
            index = Compressed.load(job.trained)
        shards = range(len(database.paths))
        for _ in self.each(partial(_encoded, job), shards):
            pass
        sought = Sought(queries, database, job.count, self.itself)
        rows = sampled(len(queries), self.config)
        asked = sought.asked(rows)
        found: Iterable[Found] = self.each(partial(_nearest_in, job, asked), shards)
        nearest = reduce(partial(nearest_of_both, count=job.count + self.itself), found)
        sample = Sample(rows, sought.true(rows, nearest), self.threshold, self.itself)

        def search(some: Int[np.ndarray, " n"], width: Width) -> Scored:
            asked, most = sought.asked(some), sought.most(width)
            held: list[Candidates] = []
            for proposed in self.each(partial(_proposed, job, asked, most, width), shards):
                _keep(held, proposed, most, queries=len(some))
            return sought.nearest(some, asked, best(held, most))

        recall, width = wide_enough(
            sample, self.config.recall, first=index.narrowest, search=search,
            wider=lambda width: index.wider(width, count=job.count, total=len(database)),
        )  # fmt: skip
        return recall, told(index.name, width, recall, sought, self.config), width


@dataclass(frozen=True, slots=True)
class _Job:
    """What all tasks of a search know."""

    queries: tuple[Path, ...]
    database: tuple[Path, ...]
    count: int
    itself: bool
    folder: Path
    mark: str
    """Of all that the neighbours depend on."""
    index: str
    """Of all that the codes do: another search of the same vectors takes them over."""
    threads: int

    @property
    def trained(self) -> Path:
        """The index without rows."""
        return self.folder / f"trained-{self.index}.faiss"

    def codes(self, shard: int) -> Path:
        """Of the rows of a shard."""
        return self.folder / f"codes-{shard:06}-{self.index}.faiss"

    def indexes(self) -> Iterator[Compressed]:
        """Those of all shards that have rows, one after the other."""
        starts = Stacked(self.database).starts
        for shard in np.flatnonzero(np.diff(starts)).tolist():
            yield Compressed.load(self.codes(shard), first=int(starts[shard]))


def _encoded(job: _Job, shard: int) -> None:
    """The codes of a shard's rows, made unless they are there."""
    if job.codes(shard).exists():
        return
    rows, first = mapped(job.database[shard]), int(Stacked(job.database).starts[shard])
    with threads(job.threads):
        index = Compressed.load(job.trained, first=first)
        for start, some in parts(rows):
            index.add(some, first=first + start)
        index.save(job.codes(shard))


def _nearest_in(job: _Job, asked: Float32[np.ndarray, "Q D"], shard: int) -> Found:
    """The truth about the sample, in a shard."""
    first = int(Stacked(job.database).starts[shard])
    with threads(job.threads):
        return nearest_of_all(asked, mapped(job.database[shard]), job.count + job.itself, first=first)


def _proposed(job: _Job, asked: Float32[np.ndarray, "n D"], most: int, width: Width, shard: int) -> Candidates:
    """What a shard proposes of some queries."""
    starts = Stacked(job.database).starts
    with threads(job.threads):
        index = Compressed.load(job.codes(shard), first=int(starts[shard]))
        return candidates_in([index] if len(index) else [], asked, most, width)


def _keep(held: list[Candidates], more: Candidates, most: int, *, queries: int) -> None:
    """Hold what a shard proposes too; what is held does not grow with the shards, and its best are those of all."""
    held.append(more)
    if sum(map(len, held)) > 4 * most * queries:
        held[:] = [best(held, most)]


def _answered(job: _Job, width: Width, some: tuple[int, int]) -> Path:
    """The neighbours of consecutive queries; the file that they are in."""
    mark = fingerprint([job.mark, asdict(width) | {"floor": float(width.floor).hex()}])
    path = job.folder / f"neighbours-{some[0]:012}-{some[1]:012}-{mark}.npz"
    if _read(path) is not None:
        return path
    sought = Sought(Stacked(job.queries), Stacked(job.database), job.count, job.itself)
    # As in one process: products of matrices are rounded alike only where these have the same rows.
    blocks = [np.arange(start, min(start + ROWS_AT_ONCE, some[1])) for start in range(some[0], some[1], ROWS_AT_ONCE)]
    asked = [sought.asked(rows) for rows in blocks]
    probes: list[Probes] = []
    proposed: list[list[Candidates]] = [[] for _ in blocks]
    with threads(job.threads):
        for index in job.indexes():
            probes = probes or [index.probes(rows, width) for rows in asked]
            for part, its in zip(proposed, probes, strict=True):
                proposes = index.candidates(its, sought.most(width), floor=width.floor)
                _keep(part, proposes, sought.most(width), queries=len(its.cells))
        found = [
            sought.nearest(*one[:2], best(one[2], sought.most(width)))
            for one in zip(blocks, asked, proposed, strict=True)
        ]
    _write(path, (np.concatenate([x.index for x in found]), np.concatenate([x.similarity for x in found])))
    return path


def _answered_exactly(job: _Job, some: tuple[int, int]) -> Path:
    """The same by brute force."""
    path = job.folder / f"neighbours-{some[0]:012}-{some[1]:012}-{job.mark}.npz"
    if _read(path) is not None:
        return path
    queries, rows = Stacked(job.queries), np.arange(*some)
    sought = Sought(queries, Stacked(job.database), job.count, job.itself)
    with threads(job.threads):
        found = nearest_of_all(queries[rows], sought.database, job.count + job.itself)
    _write(path, sought.true(rows, found))
    return path


def _write(path: Path, found: Found) -> None:
    write_atomic(path, lambda file: np.savez(file, index=found[0], similarity=found[1]))


def _read(path: Path) -> Found | None:
    """What a task wrote; None where it is not there, or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return held["index"], held["similarity"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
