"""The compressed index: an inverted file with 4-bit product codes, which propose what is worth an exact comparison.

``IVF{cells},PQ{D/2}x4fs`` of FAISS (André et al. 2019; Douze et al. 2024) behind a random rotation. Embeddings vary
along some directions much more than along others, and every code stands for two channels whatever these hold; rotated, all
hold alike. Of 12,000 vectors of bench/curate.py, in 4 of 128 cells, one candidate a neighbour, codes of four channels, 0.996
of the pairs were found with it and 0.974 without.

What is proposed is the same whether the rows lie in one index or in several that were trained as one.

Axes: N vectors, D channels, n of them at once, C cells, P pairs of a query and a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Int

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.files import write_atomic
from dinoforge.base.random import key, numpy_generator

SMALLEST_TRAINING = 64
"""Vectors a cell below which an index is not trained. FAISS itself only prints a warning, and below 39."""
_CHANNELS_A_CODE = 2
"""Of 100,000 vectors of bench/curate.py, in 8 of 512 cells, codes of two channels miss the cosines of pairs above 0.6 by 0.026
(standard deviation), and 15 vectors a query score as 0.998 of these pairs do; codes of four miss by 0.065, and 279 do."""
_CODE_TRAINING = 256
"""Vectors for each of the 16 values of a code that these are learned from."""
_MOST_CANDIDATES = 2048
_TIES = 16
"""Asked for beyond what is wanted: of those that score as the last one, the lowest rows are taken. FAISS takes any."""


@runtime_checkable
class Rows(Protocol):
    """Vectors that are read a few at a time: an array, or files seen as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """How many, and how many channels."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Some of them: a slice, or numbers of rows."""


@dataclass(frozen=True, slots=True)
class Width:
    """How wide a search is."""

    cells: int
    """Cells that are looked into."""
    candidates: int
    """Vectors that are compared exactly, for each neighbour asked for."""
    floor: float = -math.inf
    """Score of a code below which its vector is not compared."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Queries, and the cells that are looked into for each: the same for all indexes that were trained as one."""

    turned: Float32[np.ndarray, "n D"]
    cells: Int[np.ndarray, "n C"]
    similarity: Float32[np.ndarray, "n C"]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs of a query and a row that may be near."""

    query: Int[np.ndarray, " P"]
    row: Int[np.ndarray, " P"]
    score: Float32[np.ndarray, " P"]
    """What the codes say."""

    def __len__(self) -> int:
        return len(self.query)

    def where(self, keep: Bool[np.ndarray, " P"]) -> Candidates:
        """Some of them."""
        return Candidates(self.query[keep], self.row[keep], self.score[keep])


def best(parts: Sequence[Candidates], most: int) -> Candidates:
    """The ``most`` candidates of each query that score best in all parts, of equally good ones the lowest rows."""
    found = Candidates(*(np.concatenate([getattr(x, name) for x in parts]) for name in ("query", "row", "score")))
    order = np.lexsort((found.row, -found.score, found.query))
    query = found.query[order]
    order = order[np.arange(len(query)) - np.searchsorted(query, query) < most]
    return Candidates(found.query[order], found.row[order], found.score[order])


def cells_for(vectors: int) -> int:
    """Cells of an index of that many vectors: a power of two, about 1.2 √n or as many as they can train; 0 for none.

    Codes are scanned so fast that what costs is to learn the cells and to compare every vector with all their centres, twice:
    that alone grows as cells times vectors.
    """
    most = vectors // SMALLEST_TRAINING
    return 1 << min(round(math.log2(1.2 * math.sqrt(vectors))), int(math.log2(most))) if most else 0


class Compressed:
    """A trained index of codes. Rows are added in the order of their numbers."""

    def __init__(self, rotation: Any, codes: Any, *, first: int = 0, owner: Any = None) -> None:
        self._rotation, self._codes = rotation, codes
        self._owner = owner  # what frees both with itself: FAISS keeps pointers alone
        self.first = first
        """Number of the first row."""
        self.name = f"IVF{codes.nlist},PQ{codes.d // _CHANNELS_A_CODE}x4fs"

    @staticmethod
    def train(vectors: Rows, *, training: int, seed: int, cells: int | None = None) -> Compressed:
        """An empty index trained on a sample of the vectors; a function of them and the seed.

        Args:
            training: Vectors a cell in the sample, as far as there are so many.
            cells: By default as ``cells_for`` says.

        Raises:
            DataError: Fewer than 64 vectors a cell.
            ConfigError: A width that is odd.
        """
        width = vectors.shape[1]
        if width % _CHANNELS_A_CODE:
            raise ConfigError(f"the compressed index takes a multiple of {_CHANNELS_A_CODE} channels; got {width}.")
        cells = cells or cells_for(len(vectors))
        wanted = min(len(vectors), cells * training)
        if wanted < cells * SMALLEST_TRAINING:
            raise DataError(
                f"an index of {cells} cells is trained on {cells * SMALLEST_TRAINING} vectors or more; got {wanted}."
            )
        rows = np.sort(numpy_generator(seed, "index training").choice(len(vectors), wanted, replace=False))
        sample = np.ascontiguousarray(vectors[rows], dtype=np.float32)
        sample /= np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)
        rotation = faiss.RandomRotationMatrix(width, width)
        rotation.init(key(seed, "rotation") % 2**31)
        codes: Any = faiss.index_factory(
            width, f"IVF{cells},PQ{width // _CHANNELS_A_CODE}x4fs", faiss.METRIC_INNER_PRODUCT
        )
        for settings, most in ((codes.cp, wanted), (codes.pq.cp, _CODE_TRAINING)):
            settings.seed = key(seed, "index") % 2**31
            settings.max_points_per_centroid = most  # else FAISS draws 256 a cell by itself, in silence
        codes.cp.spherical = True
        codes.by_residual = True  # what a vector has beside its cell's centre is shorter, and its code nearer to it
        codes.train(rotation.apply(sample))
        return Compressed(rotation, codes)

    def __len__(self) -> int:
        return int(self._codes.ntotal)

    @property
    def cells(self) -> int:
        """How many it is divided into."""
        return int(self._codes.nlist)

    @property
    def centres(self) -> Float32[np.ndarray, "C D"]:
        """Of the cells, as vectors are before they are turned."""
        return np.asarray(self._rotation.reverse_transform(self._codes.quantizer.reconstruct_n(0, self.cells)))

    def add(self, rows: Float32[np.ndarray, "n D"], *, first: int) -> None:
        """Add rows of length 1; ``first`` is the number of the first of them."""
        expected = self.first + len(self)
        assert first == expected, f"row {first} was added after row {expected - 1}"
        self._codes.add(self._rotation.apply(rows))

    def probes(self, rows: Float32[np.ndarray, "n D"], width: Width) -> Probes:
        """Where a search of rows of length 1 looks."""
        turned = self._rotation.apply(rows)
        similarity, cells = self._codes.quantizer.search(turned, min(width.cells, self.cells))
        return Probes(turned, cells, similarity)

    def candidates(self, probes: Probes, most: int, *, floor: float = -math.inf) -> Candidates:
        """The ``most`` rows of each query whose codes score best; see ``best``.

        More than 2,048 that score alike are any of them.

        Args:
            floor: What a score must reach.
        """
        self._codes.nprobe = probes.cells.shape[1]
        waiting, asked, parts = np.arange(len(probes.cells)), most + _TIES, []
        while len(waiting):
            score, row = self._codes.search_preassigned(
                probes.turned[waiting], asked, probes.cells[waiting], probes.similarity[waiting]
            )
            score = np.where(row < 0, -np.inf, score)
            tied = (score[:, most - 1] == score[:, most]) & (score[:, most] >= floor) & (row[:, most] >= 0)
            unsure = tied & (score[:, most] == score[:, -1]) & (asked < min(len(self), _MOST_CANDIDATES))
            row[tied], score[tied] = _in_order(row[tied], score[tied])
            query, rank = np.nonzero(((row >= 0) & (score >= floor) & ~unsure[:, None])[:, :most])
            parts.append(Candidates(waiting[query], row[query, rank] + self.first, score[query, rank]))
            waiting, asked = waiting[unsure], 4 * asked
        return parts[0] if len(parts) == 1 else best(parts, most) if parts else _NONE

    @property
    def narrowest(self) -> Width:
        """Where a search begins."""
        return Width(max(1, self.cells // 256), 1)

    def wider(self, width: Width, *, count: int, total: int) -> list[Width]:
        """The next wider searches: half as many cells again, twice the candidates, as far as there are more.

        Args:
            count: Neighbours that are asked for.
            total: Rows that there are, in this index and in others that were trained as it.
        """
        found = []
        if width.cells < self.cells:
            found.append(Width(min(width.cells + (width.cells + 1) // 2, self.cells), width.candidates))
        if width.candidates * 2 * count <= min(_MOST_CANDIDATES, 2 * total):
            found.append(Width(width.cells, 2 * width.candidates))
        return found

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        whole = faiss.IndexPreTransform(self._rotation, self._codes)
        write_atomic(path, lambda file: file.write(faiss.serialize_index(whole).tobytes()))

    @staticmethod
    def load(path: Path, *, first: int = 0) -> Compressed:
        """One that was saved.

        Args:
            first: Number of its first row.
        """
        owner = faiss.read_index(str(path))
        whole: Any = faiss.downcast_index(owner)
        rotation, codes = faiss.downcast_VectorTransform(whole.chain.at(0)), faiss.downcast_index(whole.index)
        return Compressed(rotation, codes, first=first, owner=owner)


_NONE = Candidates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _in_order(row: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best first, of equally good ones the lowest row."""
    order = np.lexsort((row, -score), axis=1)
    return np.take_along_axis(row, order, axis=1), np.take_along_axis(score, order, axis=1)


def candidates_in(
    indexes: Iterable[Compressed], rows: Float32[np.ndarray, "n D"], most: int, width: Width
) -> Candidates:
    """The candidates of rows of length 1 in all indexes that were trained as one."""
    probes, parts = None, []
    for index in indexes:
        probes = probes or index.probes(rows, width)
        parts.append(index.candidates(probes, most, floor=width.floor))
    return parts[0] if len(parts) == 1 else best(parts, most) if parts else _NONE
