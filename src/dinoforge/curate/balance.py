"""Balance by a hierarchy of clusters (Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning").

k-means puts many centres where data are dense. Clustering the centres again, and again, spreads them towards an even
coverage; resampling, which clusters anew only the images nearest to each centre, does so further. Then images are drawn
from the top down, so that each cluster gives as many as it can up to a common level: water filling.

Axes: N images, D channels, L levels, C clusters of a level, k children of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from dinoforge.base.config import Config, Count
from dinoforge.base.errors import ConfigError
from dinoforge.base.random import key, numpy_generator
from dinoforge.features.kmeans import Clusters, KmeansConfig, assigned, kmeans


class LevelConfig(Config):
    """One level of the hierarchy; a number alone stands for so many clusters."""

    clusters: Count = Field(ge=1)
    """How many it has: of images on the first level, of the clusters below on the others."""
    resampled: int = Field(default=10, ge=0)
    """Rounds of resampling; the paper's is 10, but on a first level of millions of clusters, where it has none."""
    nearest: int = Field(default=2, ge=1)
    """Points of each cluster, nearest to its centre, that a round clusters anew; 1 leaves the level as it is. The paper has
    about half the mean size of a cluster."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return {"clusters": value} if isinstance(value, int | str) else value


class BalanceConfig(Config):
    """A hierarchy of any number of levels, and how it is drawn from."""

    levels: tuple[LevelConfig, ...] = Field(min_length=1)
    """From the images up."""
    kmeans: KmeansConfig = KmeansConfig()
    """The same on every level."""
    closest: bool = False
    """Of a cluster of the first level, take the images nearest to its centre; else any (the paper found that better)."""
    repeats: int = Field(default=1, ge=1)
    """How often one image may be taken."""
    seed: int = Field(default=0, ge=0)
    """Of all that is drawn."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Clusters of images, clusters of those, and so on."""

    levels: tuple[Clusters, ...]

    def cluster(self, level: int) -> Int[np.ndarray, " N"]:
        """The cluster of every image on a level, 0 the lowest."""
        found = self.levels[0].assignment
        for above in self.levels[1 : level + 1]:
            found = above.assignment[found]
        return found


def hierarchy(vectors: Float[np.ndarray, "N D"], *, config: BalanceConfig) -> Hierarchy:
    """Cluster the images, then the centres found, level upon level.

    Raises:
        ConfigError: A level of more clusters than the one below has.
    """
    points: np.ndarray = np.asarray(vectors, dtype=np.float32)
    levels: list[Clusters] = []
    for number, level in enumerate(config.levels):
        if level.clusters > len(points):
            below = "images" if not number else "clusters below it"
            raise ConfigError(
                f"balance.levels.{number}.clusters must be at most the {len(points)} {below}; got {level.clusters}."
            )
        levels.append(_level(points, level, number, config))
        points = levels[-1].centres
    return Hierarchy(tuple(levels))


def _level(points: np.ndarray, level: LevelConfig, number: int, config: BalanceConfig) -> Clusters:
    found = kmeans(points, clusters=level.clusters, seed=key(config.seed, "level", number, 0), config=config.kmeans)
    for turn in range(level.resampled if level.nearest > 1 else 0):
        rows = nearest_members(found, level.nearest)
        if len(rows) < level.clusters:  # copies left clusters empty
            break
        again = kmeans(
            points[rows],
            clusters=level.clusters,
            seed=key(config.seed, "level", number, turn + 1),
            config=config.kmeans,
        )
        found = assigned(points, again.centres, config=config.kmeans)
    return found


def nearest_members(clusters: Clusters, count: int) -> Int[np.ndarray, " n"]:
    """The points of each cluster nearest to its centre, at most so many of each, in order of the points."""
    order = np.lexsort((np.arange(len(clusters.assignment)), clusters.distance, clusters.assignment))
    ordered = clusters.assignment[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return np.sort(order[rank < count])


def water_filling(sizes: Int[np.ndarray, " k"], total: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """How many to take of each: ``min(size, level)`` for the one level that comes to ``total``, all where there are fewer.

    The level is a whole number; what is left over goes one by one to random clusters that have more.
    """
    if total >= sizes.sum():
        return sizes.astype(np.int64)
    low, high = 0, int(sizes.max())  # the sum at ``low`` is at most the total, at ``high`` it is more
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle)
    taken = np.minimum(sizes, low).astype(np.int64)
    left = total - int(taken.sum())
    taken[rng.choice(np.flatnonzero(sizes > low), left, replace=False)] += 1
    return taken


def balanced(tree: Hierarchy, *, images: int, config: BalanceConfig) -> Int[np.ndarray, " n"]:
    """Rows of so many images, balanced over the hierarchy; all of them where there are fewer. Sorted; twice where repeated.

    From the top down, each cluster's share is divided by water filling among the clusters in it, by the number of images
    under each.
    """
    if images < 0:
        raise ConfigError(f"a balanced sample takes 0 images or more; got {images}.")
    top = len(tree.levels) - 1
    sizes = [
        np.bincount(tree.cluster(level), minlength=len(clusters.centres)) * config.repeats
        for level, clusters in enumerate(tree.levels)
    ]
    shares = water_filling(sizes[top], images, numpy_generator(config.seed, "balance", top + 1, 0))
    for level in range(top, 0, -1):
        shares = _divided(shares, tree.levels[level].assignment, sizes[level - 1], level, config.seed)
    return _taken(tree.levels[0], shares, config)


def _divided(
    shares: Int[np.ndarray, " C"], parent: Int[np.ndarray, " k"], sizes: Int[np.ndarray, " k"], level: int, seed: int
) -> Int[np.ndarray, " k"]:
    """The share of every cluster below a level, from the shares of those on it."""
    below = np.zeros(len(parent), dtype=np.int64)
    order = np.argsort(parent, kind="stable")
    for children in np.split(order, np.flatnonzero(np.diff(parent[order])) + 1):
        cluster = int(parent[children[0]])
        rng = numpy_generator(seed, "balance", level, cluster)
        below[children] = water_filling(sizes[children], int(shares[cluster]), rng)
    return below


def _taken(lowest: Clusters, shares: Int[np.ndarray, " C"], config: BalanceConfig) -> Int[np.ndarray, " n"]:
    """Images of each cluster of the first level: each whole times over as often as the share has it, then some once more."""
    order = np.lexsort((np.arange(len(lowest.assignment)), lowest.distance, lowest.assignment))
    ordered = lowest.assignment[order]
    parts = [np.zeros(0, dtype=np.int64)]
    for members in np.split(order, np.flatnonzero(np.diff(ordered)) + 1) if len(order) else []:
        cluster = int(lowest.assignment[members[0]])
        whole, rest = divmod(int(shares[cluster]), len(members))
        rng = numpy_generator(config.seed, "images of a leaf", cluster)
        some = members[:rest] if config.closest else rng.choice(members, rest, replace=False)
        parts += [np.tile(members, whole), some]
    return np.sort(np.concatenate(parts))


def evenness(labels: Int[np.ndarray, " N"], *, classes: int) -> float:
    """Entropy of the classes' shares over that of equal shares: 1 where all are equally frequent, 0 where one has all."""
    shares = np.bincount(labels, minlength=classes) / max(len(labels), 1)
    held = shares[shares > 0]
    return float(-(held * np.log(held)).sum() / np.log(max(classes, 2)))
