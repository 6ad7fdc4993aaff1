"""The compressed index: an inverted file with 4-bit product codes, and float16 vectors to compute what it proposes.

``IVF{cells},PQ{D/4}x4fs`` of FAISS (André et al. 2019; Douze et al. 2024) behind a random rotation, re-scored. Embeddings vary
along some directions much more than along others, and every code stands for four channels whatever these hold; rotated, all
hold alike. Of 12,000 vectors of bench/curate.py, in 4 of 128 cells and with one candidate a neighbour, 0.996 of the pairs were
found with it and 0.974 without.

Axes: N vectors, D channels, n of them at once, K neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.random import key, numpy_generator

SMALLEST_TRAINING = 64
"""Vectors a cell below which an index is not trained. FAISS itself only prints a warning, and below 39."""
_CHANNELS_A_CODE = 4
_CODE_TRAINING = 256
"""Vectors for each of the 16 values of a code that these are learned from."""
_MOST_CANDIDATES = 2048


@dataclass(frozen=True, slots=True)
class Width:
    """How wide a search is."""

    cells: int
    """Cells that are looked into."""
    candidates: int
    """Vectors that are compared exactly, for each neighbour asked for."""


def cells_for(vectors: int) -> int:
    """Cells of an index of that many vectors: a power of two, about 2 √n or as many as they can train; 0 for none.

    Codes are scanned so fast that what costs is to learn the cells and to compare every vector with all their centres. With
    4 √n cells a million vectors of 512 channels would take four times as long for the one and twice as long for the other.
    """
    most = vectors // SMALLEST_TRAINING
    return 1 << min(round(math.log2(2 * math.sqrt(vectors))), int(math.log2(most))) if most else 0


class Compressed:
    """A trained index. Rows are added in the order of their numbers."""

    def __init__(self, rotation: Any, codes: Any, cells: int) -> None:
        width = codes.d
        self._cells = cells
        rotated = faiss.IndexPreTransform(rotation, codes)
        exact = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index = faiss.IndexRefine(rotated, exact)
        self._parts = rotation, codes, rotated, exact  # FAISS keeps pointers alone
        self.name = f"IVF{cells},PQ{width // _CHANNELS_A_CODE}x4fs"

    @staticmethod
    def train(vectors: Float[np.ndarray, "N D"], *, training: int, seed: int, cells: int | None = None) -> Compressed:
        """An empty index trained on a sample of the vectors; a function of them and the seed.

        Args:
            training: Vectors a cell in the sample, as far as there are so many.
            cells: By default as ``cells_for`` says.

        Raises:
            DataError: Fewer than 64 vectors a cell.
            ConfigError: A width that is no multiple of 4.
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
        return Compressed(rotation, codes, cells)

    def add(self, rows: Float32[np.ndarray, "n D"], *, first: int) -> None:
        """Add rows of length 1; ``first`` is the number of the first of them."""
        assert first == self._index.ntotal, f"row {first} was added after row {self._index.ntotal - 1}"
        self._index.add(rows)

    def search(
        self, rows: Float32[np.ndarray, "n D"], count: int, width: Width
    ) -> tuple[Int[np.ndarray, "n K"], Float32[np.ndarray, "n K"]]:
        """The ``count`` nearest of each and their similarities, exact to float16's rounding; -1 and -inf where none is left."""
        library: Any = faiss  # its constructors take keywords that its stubs do not know
        inside = library.SearchParametersIVF(nprobe=width.cells)
        inside = library.SearchParametersPreTransform(index_params=inside)
        how = library.IndexRefineSearchParameters(k_factor=width.candidates, base_index_params=inside)
        near, at = self._index.search(rows, count, params=how)
        near = np.where(at < 0, -np.inf, near).astype(np.float32)
        order = np.lexsort((at, -near), axis=1)
        return np.take_along_axis(at, order, axis=1), np.take_along_axis(near, order, axis=1)

    @property
    def narrowest(self) -> Width:
        """Where a search begins."""
        return Width(max(1, self._cells // 256), 1)

    def wider(self, width: Width, *, count: int) -> list[Width]:
        """The next wider searches: twice the cells, twice the candidates, as far as there are more."""
        found = []
        if width.cells < self._cells:
            found.append(replace(width, cells=min(2 * width.cells, self._cells)))
        if width.candidates * 2 * count <= min(_MOST_CANDIDATES, 2 * self._index.ntotal):
            found.append(replace(width, candidates=2 * width.candidates))
        return found
