"""From seeds to what is like them in a pool, as LVD-142M was built (DINOv2, sec. 3, app. A and table 15).

*By samples*, for large seed sets: the nearest images of every seed. *By clusters*, for small ones: the pool is clustered,
and every cluster that holds more than three seeds gives many of its images, up to a cap for each seed set.

Axes: S seeds of a set, N images of the pool, K neighbours, C clusters.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import DataError
from dinoforge.base.random import numpy_generator
from dinoforge.curate.why import Chosen
from dinoforge.features.kmeans import KmeansConfig
from dinoforge.features.search import Neighbours, SearchConfig

LARGE = 1_000_000
"""Seeds above which a set is large, and retrieval goes by samples."""


class RetrievalConfig(Config):
    """How many images of the pool a seed set brings."""

    method: Literal["auto", "samples", "clusters", "all"] = "auto"
    """``auto`` goes by samples for a set of more than a million seeds, by clusters for a smaller one; ``all`` keeps every
    image, and notes its nearest seed. ``retrieve=`` for short."""
    neighbours: int = Field(default=4, ge=1)
    """By samples: images for each seed. The paper took 4 for ImageNet-22k and Google Landmarks, 32 for ImageNet-1k."""
    multiplicity: bool = False
    """By samples: keep an image as often as seeds chose it, as the counts of table 15 do; else once, by its nearest seed."""
    clusters: Count | None = Field(default=None, ge=1)
    """By clusters: into how many the pool is divided; null takes the paper's 100,000; in a pool of fewer than
    1.6 million one for 16 images, and none without 4 seeds on average."""
    more_than: int = Field(default=3, ge=0)
    """By clusters: a cluster gives images if it holds more seeds than this."""
    per_cluster: Count = Field(default=10_000, ge=1)
    """By clusters: images that one gives, or all it has."""
    cap: Count = Field(default=1_000_000, ge=1)
    """By clusters: images that one seed set brings at most."""
    kmeans: KmeansConfig = KmeansConfig(spherical=True, sample=256)
    """By clusters: how they are found."""
    search: SearchConfig = SearchConfig()
    """By samples: how neighbours are found."""
    seed: int = Field(default=0, ge=0)
    """Of the clusters, and of what is drawn where a cluster or a set has more than it may give."""


def method_for(seeds: int, config: RetrievalConfig) -> Literal["samples", "clusters", "all"]:
    """How a seed set of that size is retrieved for.

    Raises:
        DataError: An empty one.
    """
    if seeds < 1:
        raise DataError("a seed set is empty; give at least one image.")
    if config.method != "auto":
        return config.method
    return "samples" if seeds > LARGE else "clusters"


def by_samples(neighbours: Neighbours, *, seed_set: int, config: RetrievalConfig) -> Chosen:
    """The nearest images of every seed, seed after seed, nearest first; or each image once, by its most similar seed.

    Args:
        neighbours: Of the seeds in the pool, at least ``config.neighbours`` of each where the pool has so many.
    """
    index, similarity = neighbours.index[:, : config.neighbours], neighbours.similarity[:, : config.neighbours]
    seed, rank = np.nonzero(index >= 0)
    found = Chosen(
        row=index[seed, rank],
        seed_set=np.full(len(seed), seed_set),
        seed=seed,
        rank=rank,
        similarity=similarity[seed, rank],
        cluster=np.full(len(seed), -1),
    )
    return found if config.multiplicity else found.once()


def by_nearest(neighbours: Neighbours, *, seed_set: int) -> Chosen:
    """Every image of the pool, with the seed that it is nearest to.

    Args:
        neighbours: Of the pool's images among the seeds, one each.
    """
    images = len(neighbours.index)
    return Chosen(
        row=np.arange(images),
        seed_set=np.full(images, seed_set),
        seed=neighbours.index[:, 0],
        rank=np.zeros(images, dtype=np.int64),
        similarity=neighbours.similarity[:, 0],
        cluster=np.full(images, -1),
    )


def by_clusters(
    pool: Int[np.ndarray, " N"], seeds: Int[np.ndarray, " S"], *, seed_set: int, config: RetrievalConfig
) -> Chosen:
    """Images of every cluster that holds enough seeds, in order of clusters and rows.

    A cluster of more than ``per_cluster`` images, and a set that comes to more than ``cap``, give an even random draw.
    (The paper does not say which images it took.)

    Args:
        pool: Cluster of each image of the pool.
        seeds: Cluster of each seed of the set.
    """
    order = np.argsort(pool, kind="stable")
    sizes = np.bincount(pool, minlength=config.clusters or 0)
    starts = np.cumsum(sizes) - sizes
    parts = [np.zeros(0, dtype=np.int64)]
    for cluster in giving(seeds, more_than=config.more_than).tolist():
        if cluster >= len(sizes):
            continue
        members = order[starts[cluster] : starts[cluster] + sizes[cluster]]
        rng = numpy_generator(config.seed, "images of a cluster", seed_set, cluster)
        parts.append(_drawn(members, config.per_cluster, rng))
    row = np.concatenate(parts)
    row = _drawn(row, config.cap, numpy_generator(config.seed, "images of a seed set", seed_set))
    nothing = np.full(len(row), -1)
    return Chosen(
        row=row,
        seed_set=np.full(len(row), seed_set),
        seed=nothing,
        rank=nothing,
        similarity=np.full(len(row), np.nan, np.float32),
        cluster=pool[row],
    )


def giving(seeds: Int[np.ndarray, " S"], *, more_than: int) -> Int[np.ndarray, " c"]:
    """The clusters that hold more than so many seeds."""
    cluster, held = np.unique(seeds, return_counts=True)
    return cluster[held > more_than]


def _drawn(rows: Int[np.ndarray, " n"], most: int, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    """At most so many of the rows, any with the same chance, in their order."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(rng.choice(len(rows), most, replace=False))]


def expected(seeds: int, before_cap: int, config: RetrievalConfig) -> int:
    """How many images a seed set brings with multiplicity: a product by samples, at most the cap by clusters (table 15).

    Args:
        before_cap: Images of the clusters that give any; not needed by samples.
    """
    if method_for(seeds, config) == "samples":
        return seeds * config.neighbours
    return min(before_cap, config.cap)
