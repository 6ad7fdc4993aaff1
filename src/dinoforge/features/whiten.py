"""What makes descriptors comparable: whitening, score normalisation, and a hash of sign bits.

Whitening and score normalisation are those published with SSCD (Pizzi et al. 2022, sec. 4.3 and its repository); the PCA-hash
is a stage of DINOv2's pipeline (sec. 3) whose details were never published: here it is the signs of the first components.

Axes: N vectors, D channels, K kept components, Q queries, R neighbours of each in a background set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, UInt64

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.features.compressed import Rows
from dinoforge.features.copies import unit
from dinoforge.features.mapped import blocks

_SMALLEST = 1e-6
"""Share of the largest variance below which a direction is noise, and is not blown up."""


@dataclass(frozen=True, slots=True)
class Whitening:
    """A centre and directions, fitted once to a sample of the pool; a pure function of a shard ever after."""

    mean: Float[np.ndarray, " D"]
    directions: Float[np.ndarray, "K D"]
    """Orthogonal; each of length 1, or divided by the spread along it."""

    def project(self, vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """The components, float32."""
        return ((vectors.astype(np.float32) - self.mean) @ self.directions.T).astype(np.float32)

    def __call__(self, vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """The components at length 1 (FAISS: ``PCAW512,L2norm``, or ``PCA512,L2norm`` without whitening)."""
        return unit(self.project(vectors))


def fit_whitening(vectors: Rows, *, width: int, whiten: bool = True) -> Whitening:
    """The ``width`` directions of largest variance, each scaled to variance 1, or only turned where ``whiten`` is false.

    Directions are signed so that their largest number is positive: the same vectors give the same hash bits anywhere.

    Args:
        vectors: ``[N D]``, float; some thousand at a time are in memory.

    Raises:
        ConfigError: More directions than channels.
        DataError: Fewer than two vectors.
    """
    if not 1 <= width <= vectors.shape[1]:
        raise ConfigError(f"whitening to {width} channels takes 1 to the {vectors.shape[1]} that the descriptor has.")
    if len(vectors) < 2:
        raise DataError(f"whitening is fitted to at least 2 vectors; got {len(vectors)}.")
    mean = sum(some.astype(np.float64).sum(axis=0) for some in blocks(vectors)) / len(vectors)
    away = (some.astype(np.float64) - mean for some in blocks(vectors))
    variance, axes = np.linalg.eigh(sum(x.T @ x for x in away) / len(vectors))
    variance, axes = variance[::-1][:width], axes.T[::-1][:width]
    axes = axes * np.sign(axes[np.arange(width), np.abs(axes).argmax(axis=1)])[:, None]
    if whiten:
        axes = axes / np.sqrt(np.maximum(variance, max(variance[0] * _SMALLEST, 1e-12)))[:, None]
    return Whitening(mean.astype(np.float32), axes.astype(np.float32))


def score_normalised(
    similarity: Float[np.ndarray, "Q ..."],
    background: Float[np.ndarray, "Q R"],
    *,
    beta: float = 1.0,
    neighbours: int = 3,
) -> Float[np.ndarray, "Q ..."]:
    """Similarities of each query minus how similar it is to what it certainly is no copy of.

    Args:
        background: Similarities of each query to a background set, largest first; SSCD averages those of rank 0 to 2.
        beta: How much of that is taken off; 1 as published.

    Raises:
        DataError: The background has fewer neighbours than are averaged.
    """
    if background.shape[1] < neighbours:
        raise DataError(f"score normalisation averages {neighbours} background neighbours; got {background.shape[1]}.")
    bias = beta * background[:, :neighbours].mean(axis=1)
    return similarity - bias.reshape(-1, *[1] * (similarity.ndim - 1))


BITS = 64
"""Of a PCA-hash: one machine word."""


def pca_hash(vectors: Float[np.ndarray, "N D"], whitening: Whitening) -> UInt64[np.ndarray, " N"]:
    """The signs of the first 64 components, the largest's the lowest bit; fewer where there are fewer components."""
    positive = whitening.project(vectors)[:, :BITS] > 0
    weights = np.left_shift(np.uint64(1), np.arange(positive.shape[1], dtype=np.uint64))
    return (positive * weights).sum(axis=1, dtype=np.uint64)


def hash_pairs(hashes: UInt64[np.ndarray, " N"], *, distance: int = 2) -> Int[np.ndarray, "2 P"]:
    """Pairs that link all hashes of at most ``distance`` different bits, the lower row first.

    Of rows with one hash each is paired with the first alone, and only firsts with one another. Exact: two hashes that differ
    in d bits agree in one of d + 1 parts (pigeonhole); a part of b bits costs about n² / 2^b comparisons.

    Raises:
        ConfigError: A distance outside 0 to 7.
    """
    if not 0 <= distance <= 7:
        raise ConfigError(f"the distance of two PCA-hashes takes 0 to 7 bits; got {distance}.")
    values, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[which] != np.arange(len(hashes)))
    found = [np.stack([first[which[repeated]], repeated])]
    cuts = np.linspace(0, BITS, distance + 2).round().astype(int)
    for start, stop in pairwise(cuts.tolist()) if distance else ():
        part = (values >> np.uint64(start)) & np.uint64((1 << (stop - start)) - 1)
        for left, right in _equal(part):
            near = _ones(values[left] ^ values[right]) <= distance
            found.append(first[np.stack([left[near], right[near]])])
    pairs = np.sort(np.concatenate(found, axis=1), axis=0)
    return np.unique(pairs, axis=1).astype(np.int64).reshape(2, -1)


def _ones(words: UInt64[np.ndarray, " p"]) -> Int[np.ndarray, " p"]:
    """How many bits of each word are set."""
    return np.unpackbits(words.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)


def _equal(part: UInt64[np.ndarray, " U"]) -> Iterator[tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]]:
    """All pairs of places with one value, distance after distance along the sorted values: memory stays linear."""
    order = np.argsort(part, kind="stable")
    ordered, at, step = part[order], np.arange(len(order)), 1
    while len(at := at[at + step < len(order)]):
        at = at[ordered[at] == ordered[at + step]]
        yield order[at], order[at + step]
        step += 1
