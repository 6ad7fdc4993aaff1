"""k-means: seeded by k-means++ or, for very many clusters, at random; exact assignment, means in float64; a pure function of
vectors and seed.

Axes: N vectors, D channels, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int
from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError
from dinoforge.base.random import numpy_generator
from dinoforge.features.exact import knn, unit_rows

_ROWS_AT_ONCE = 16_384
_NUMBERS_AT_ONCE = 1_048_576
"""In float64, of all vectors, channels after channels: the sum of a channel is the same in whatever company."""
GREEDY = 4096
"""Clusters up to which centres begin where k-means++ puts them. It reads all vectors once for every centre, one after the
other, with no product of matrices to be quick at: for the 100,000 clusters of DINOv2, app. A, that many times. Above, they
begin at vectors drawn at random, as FAISS's own k-means does."""


class KmeansConfig(Config):
    """How clusters are found."""

    rounds: int = Field(default=50, ge=1)
    """Of assignment and averaging, at most; it ends when nothing moves (Vo et al. 2024: 50)."""
    spherical: bool = False
    """Compare by cosine: vectors and centres have length 1. Else by Euclidean distance."""
    sample: Count | None = Field(default=None, ge=1)
    """Vectors a cluster that centres are learned from; null takes all. Advice for a huge pool: 256."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """A clustering of all vectors."""

    centres: Float32[np.ndarray, "K D"]
    assignment: Int[np.ndarray, " N"]
    distance: Float32[np.ndarray, " N"]
    """To the own centre: squared, or 2 - 2 cosine, which is the same on the sphere."""


def kmeans(vectors: Float[np.ndarray, "N D"], *, clusters: int, seed: int, config: KmeansConfig) -> Clusters:
    """At most ``clusters`` clusters. A cluster that lost its last vector keeps its centre.

    Raises:
        ConfigError: Fewer vectors to learn from than clusters.
    """
    many = len(vectors)
    if not 1 <= clusters <= many:
        raise ConfigError(f"k-means takes 1 cluster to as many as there are vectors, {many}; got {clusters}.")
    rng, rows = numpy_generator(seed, "k-means", clusters, many), None
    if config.sample is not None and config.sample * clusters < many:
        rows = np.sort(rng.choice(many, config.sample * clusters, replace=False))
    # Vectors may lie on the disk and be more than memory holds: no more of them are made ready than are learned from.
    learned = _ready(vectors if rows is None else vectors[rows], config)
    if clusters <= GREEDY:
        centres = _first_centres(learned, clusters, rng)
    else:
        centres = learned[np.sort(rng.choice(len(learned), clusters, replace=False))]
    before = np.full(len(learned), -1)
    for _ in range(config.rounds):
        assignment, _ = _assign(learned, centres, None)
        if (assignment == before).all():
            break
        centres, before = _means(learned, assignment, centres, spherical=config.spherical), assignment
    return assigned(vectors, centres, config=config)


def assigned(vectors: Float[np.ndarray, "N D"], centres: Float[np.ndarray, "K D"], *, config: KmeansConfig) -> Clusters:
    """Every vector with its nearest centre; a function of any shard of vectors by itself."""
    return Clusters(np.asarray(centres, dtype=np.float32), *_assign(vectors, centres, config))


def _ready(vectors: np.ndarray, config: KmeansConfig, *, first: int = 0) -> np.ndarray:
    """As they are compared."""
    return unit_rows(vectors, first=first) if config.spherical else np.ascontiguousarray(vectors, dtype=np.float32)


def _assign(x: np.ndarray, centres: np.ndarray, config: KmeansConfig | None) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centre of each vector and the squared distance to it.

    Args:
        config: How vectors are made ready; null: they are.
    """
    index, distance = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
    held = np.ascontiguousarray(centres, dtype=np.float32)
    for start in range(0, len(x), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        part = np.ascontiguousarray(x[some]) if config is None else _ready(x[some], config, first=start)
        near, at = knn(part, held, 1, metric=faiss.METRIC_L2)
        index[some], distance[some] = at[:, 0], near[:, 0]
    return index, np.maximum(distance, 0)


def _means(x: np.ndarray, assignment: np.ndarray, centres: np.ndarray, *, spherical: bool) -> np.ndarray:
    counts = np.bincount(assignment, minlength=len(centres))
    order = np.argsort(assignment, kind="stable")
    held = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[held]
    means = centres.copy()
    wide = max(1, _NUMBERS_AT_ONCE // max(len(x), 1))
    for some in (slice(start, start + wide) for start in range(0, x.shape[1], wide)):
        means[held, some] = np.add.reduceat(x[order, some].astype(np.float64), starts, axis=0) / counts[held, None]
    return unit_rows(means) if spherical else means


def _first_centres(x: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007), the best of 2 + ln K draws each time, as Vo et al. do."""
    trials = 2 + int(math.log(clusters))
    chosen = [int(rng.integers(len(x)))]
    parts = (x[start : start + _ROWS_AT_ONCE] for start in range(0, len(x), _ROWS_AT_ONCE))
    square = np.concatenate([(part.astype(np.float64) ** 2).sum(axis=1) for part in parts])
    nearest = _distances(x, square, chosen)[0]
    while len(chosen) < clusters:
        total = nearest.cumsum()
        if total[-1] <= 0:  # only copies are left
            chosen.append(int(rng.integers(len(x))))
            continue
        drawn = np.minimum(np.searchsorted(total, rng.random(trials) * total[-1], side="right"), len(x) - 1)
        tried = np.minimum(nearest, _distances(x, square, drawn.tolist()))
        best = int(tried.sum(axis=1).argmin())
        nearest = tried[best]
        chosen.append(int(drawn[best]))
    return x[chosen].copy()


def _distances(x: np.ndarray, square: np.ndarray, rows: list[int]) -> np.ndarray:
    """Squared distances ``[len(rows) N]``; none below 0, and none to itself."""
    found = np.maximum(square - 2 * (x[rows] @ x.T).astype(np.float64) + square[rows][:, None], 0)
    found[np.arange(len(rows)), rows] = 0
    return found
