"""The nearest patches of a whole collection: exactly where they are few, else by a compressed index and then exactly.

Many patches do not fit into memory. An index of FAISS (``PCA64,IVF,PQ16``: 24 bytes a patch, on the disk, mapped) names the
images that hold the nearest ones; all patches of those images are then compared as they are stored. The index goes by Euclidean
distance of patches of length 1, which orders as the cosine does and, unlike it, does not mind that the PCA takes the mean off.

Axes: N images, H by W patches, D channels, n images that are answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
from jaxtyping import Float16, Float32, Int

from dinoforge.base.config import fingerprint as digits
from dinoforge.base.random import key, numpy_generator
from dinoforge.explore.answers import Tell, untold
from dinoforge.explore.stored import see_to
from dinoforge.features.compressed import SMALLEST_TRAINING, cells_for
from dinoforge.features.exact import unit_rows

EXACT = 200_000
"""Patches up to which all are compared."""
_CHANNELS, _CHANNELS_A_CODE = 64, 4
_MOST_CELLS = 4096
_ROUNDS = 10
"""Of k-means, for the cells as for the codes."""
_LOOKED_INTO = 32
"""Cells that are looked into, of 4096 as of fewer."""
_NEAREST = 4096
"""Patches that the index is asked for at first: one image may hold many of them."""
_COMPARED = 4
"""Images that are compared exactly, for each that is answered, and ``_LEAST`` at least."""
_LEAST = 96
_AT_ONCE = 64
"""Images whose patches are in memory at once."""


@dataclass(frozen=True, slots=True)
class Found:
    """The images with the nearest patches, nearest first."""

    rows: Int[np.ndarray, " n"]
    similarity: Float32[np.ndarray, "n H W"]
    """Cosine of every patch of each with the query."""


class Places:
    """All patches of a collection, and the index if there is one."""

    def __init__(self, patches: Float16[np.ndarray, "N H W D"], index: Any | None) -> None:
        self._patches, self._index = patches, index

    def nearest(self, query: Float32[np.ndarray, " D"], *, count: int, without: int | None = None) -> Found:
        """The ``count`` images with the nearest patches by cosine, of equally near ones the first.

        Args:
            without: A row that is no answer.
        """
        asked = unit_rows(query[None])[0]
        rows = np.arange(len(self._patches)) if self._index is None else self._candidates(asked, count)
        rows = np.sort(rows[rows != (-1 if without is None else without)])
        similarity = self._compared(rows, asked)
        first = np.lexsort((rows, -similarity.max(axis=(1, 2))))[:count]
        return Found(rows[first], similarity[first])

    def _compared(self, rows: np.ndarray, asked: np.ndarray) -> Float32[np.ndarray, "n H W"]:
        """Cosines of all patches of some images with one of length 1."""
        _, tall, wide, width = self._patches.shape
        found = np.empty((len(rows), tall, wide), np.float32)
        for start in range(0, len(rows), _AT_ONCE):
            flat = self._patches[rows[start : start + _AT_ONCE]].astype(np.float32).reshape(-1, width)
            length = np.sqrt(np.einsum("nd,nd->n", flat, flat))
            found[start : start + _AT_ONCE] = (flat @ asked / np.maximum(length, 1e-12)).reshape(-1, tall, wide)
        return found

    def _candidates(self, asked: np.ndarray, count: int) -> np.ndarray:
        """Images that hold the patches that the index finds nearest."""
        _, tall, wide, _ = self._patches.shape
        wanted, nearest = min(len(self._patches), max(_COMPARED * count, _LEAST) + 1), _NEAREST
        cells = _LOOKED_INTO
        library: Any = faiss  # its constructors take keywords that its stubs do not know
        while True:
            inside = library.SearchParametersIVF(nprobe=cells)
            how = library.SearchParametersPreTransform(index_params=inside)
            _, at = self._index.search(asked[None], nearest, params=how)  # type: ignore[union-attr]
            images = at[0][at[0] >= 0] // (tall * wide)
            _, first = np.unique(images, return_index=True)
            if len(first) >= wanted or nearest >= len(self._patches) * tall * wide:
                found: np.ndarray = images[np.sort(first)[:wanted]]
                return found
            nearest, cells = 4 * nearest, 4 * cells


def open_places(
    folder: Path, patches: Float16[np.ndarray, "N H W D"], fingerprint: str, *, tell: Tell = untold, exact: int = EXACT
) -> Places:
    """What finds patches among those of a collection; an index that it needs is made and stored where it is missing.

    Args:
        exact: Patches up to which all are compared and none is made.

    Raises:
        RunError: The index cannot be stored, or another process is making it.
    """
    images, tall, wide, width = patches.shape
    count = images * tall * wide
    if count <= exact or not cells_for(count) or width < _CHANNELS_A_CODE:
        return Places(patches, None)
    path = folder / "places.faiss"

    def writer() -> Callable[[BinaryIO], object]:
        index = made(patches, tell=tell)
        library: Any = faiss  # its stubs do not know what writes to an open file
        return lambda file: library.write_index(index, library.PyCallbackIOWriter(file.write))

    see_to(path, _key(fingerprint), writer)
    return Places(patches, faiss.read_index(str(path), faiss.IO_FLAG_MMAP))


def _key(fingerprint: str) -> str:
    """Of the features, and of all that the index is made by."""
    made_by = [_CHANNELS, _CHANNELS_A_CODE, _MOST_CELLS, _ROUNDS, SMALLEST_TRAINING, _AT_ONCE, faiss.__version__]
    return digits([fingerprint, "PCA, IVF, PQ", *made_by])


def made(patches: Float16[np.ndarray, "N H W D"], *, tell: Tell = untold) -> Any:
    """The index of all patches, learned from a sample of them: a pure function of them."""
    images, tall, wide, width = patches.shape
    count = images * tall * wide
    cells = min(cells_for(count), _MOST_CELLS)
    channels = min(_CHANNELS, width // _CHANNELS_A_CODE * _CHANNELS_A_CODE)
    index: Any = faiss.index_factory(
        width, f"PCA{channels},IVF{cells},PQ{channels // _CHANNELS_A_CODE}", faiss.METRIC_L2
    )
    inside: Any = faiss.downcast_index(index.index)
    for settings in (inside.cp, inside.pq.cp):
        settings.seed = key(0, "places") % 2**31
        settings.niter = _ROUNDS
        settings.min_points_per_centroid = 1  # how many there are is decided here; else FAISS warns on standard output
    tell(0, images, "learn the index of patches")
    index.train(_sample(patches, SMALLEST_TRAINING * cells))
    for start in range(0, images, _AT_ONCE):
        part = patches[start : start + _AT_ONCE].reshape(-1, width)
        index.add(unit_rows(part, first=start * tall * wide))
        tell(min(start + _AT_ONCE, images), images, "index patches")
    return index


def _sample(patches: Float16[np.ndarray, "N H W D"], wanted: int) -> Float32[np.ndarray, "n D"]:
    """So many patches of length 1, drawn; of as few images as they would be read from if each gave 64."""
    images, tall, wide, width = patches.shape
    rng = numpy_generator(0, "places to learn from")
    each = min(tall * wide, _AT_ONCE)
    rows = np.sort(rng.choice(images, min(images, -(-wanted // each)), replace=False))
    drawn = [patches[row].reshape(-1, width)[rng.permutation(tall * wide)[: -(-wanted // len(rows))]] for row in rows]
    return unit_rows(np.concatenate(drawn))
