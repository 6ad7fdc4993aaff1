"""Every vector compared with every other, on a GPU where FAISS is built for one; and exact similarities of given pairs.

Axes: N vectors, D channels, Q queries, n rows at once, K neighbours, P pairs of a query and a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int

from dinoforge.base.errors import DataError
from dinoforge.features.compressed import Candidates, Rows

ROWS_AT_ONCE = 16_384
_PAIRS_AT_ONCE = 1_024
"""Their vectors in float32 stay in the processor's cache: 2 MiB of 512 channels."""


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


def parts(rows: Rows) -> Iterator[tuple[int, Float32[np.ndarray, "n D"]]]:
    """The number of the first row, and some thousand rows of length 1 in float32."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield start, unit_rows(rows[start : start + ROWS_AT_ONCE], first=start)


def nearest_of_all(
    queries: Rows, database: Rows, count: int, *, first: int = 0
) -> tuple[Int[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """Brute force, part of the database after part; of equally near ones the first rows. -1 and -inf where there are fewer.

    Args:
        first: Number of the database's first row.
    """
    index, similarity = (np.full((len(queries), count), none) for none in (-1, np.float32(-np.inf)))
    for start, rows in parts(database):
        for begin, asked in parts(queries):
            some = slice(begin, begin + len(asked))
            near, at = knn(asked, rows, min(count, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
            more = at + (first + start), near
            index[some], similarity[some] = nearest_of_both((index[some], similarity[some]), more, count)
    return index, similarity


def nearest_units(
    queries: Float32[np.ndarray, "Q D"], database: Float32[np.ndarray, "N D"], *, count: int
) -> tuple[Int[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """The same of vectors of length 1 that are in memory at once, which are not made so again."""
    near, at = knn(queries, database, min(count, len(database)), metric=faiss.METRIC_INNER_PRODUCT)
    return at, near


def nearest_of_both(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[Int[np.ndarray, "Q K"], Float32[np.ndarray, "Q K"]]:
    """What is nearest of all, from what is nearest of two parts (index, similarity)."""
    index, similarity = (np.concatenate(both, axis=1) for both in zip(one, other, strict=True))
    order = np.lexsort((index, -similarity), axis=1)[:, :count]
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(similarity, order, axis=1)


def knn(
    asked: Float32[np.ndarray, "n D"], rows: Float32[np.ndarray, "N D"], count: int, *, metric: int
) -> tuple[np.ndarray, np.ndarray]:
    """What FAISS's ``knn`` gives: similarities or squared distances, and rows; on the first GPU where FAISS has one.

    The CPU build counts none.
    """
    library: Any = faiss  # its stubs do not know all
    if faiss.get_num_gpus():
        near, at = library.knn_gpu(library.StandardGpuResources(), asked, rows, count, metric=metric)
    else:
        near, at = library.knn(asked, rows, count, metric=metric)
    return near, at


def compared(asked: Float32[np.ndarray, "n D"], candidates: Candidates, database: Rows) -> Float32[np.ndarray, " P"]:
    """The cosine of each candidate with its query, from the vectors themselves.

    Args:
        asked: Queries of length 1.
        candidates: Their queries are rows of ``asked``.
    """
    query = np.ascontiguousarray(candidates.query, dtype=np.int64)
    found = np.empty(len(query), np.float32)
    library: Any = faiss  # its stubs do not know all
    pointer, product = library.swig_ptr, library.pairwise_indexed_inner_product
    for start in range(0, len(query), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        rows, place = np.unique(candidates.row[some], return_inverse=True)
        held = np.ascontiguousarray(database[rows], dtype=np.float32)
        length = np.sqrt(np.einsum("nd,nd->n", held, held))
        near, one, other = np.empty(len(place), np.float32), query[some].copy(), place.astype(np.int64)
        product(held.shape[1], len(near), *map(pointer, (asked, one, held, other, near)))
        found[some] = near / np.maximum(length, 1e-12)[place]
    return found
