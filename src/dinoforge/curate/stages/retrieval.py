"""From the seeds to what is like them in the pool.

Axes: S seeds of a set, n rows of the pool, D channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.curate.retrieval import RetrievalConfig, by_clusters, by_nearest, by_samples, method_for
from dinoforge.curate.stages.embedding import depends
from dinoforge.curate.state import Result, Stage, State
from dinoforge.curate.why import Chosen, Dropped, together
from dinoforge.features.kmeans import Clusters, assigned, kmeans
from dinoforge.features.search import search

_CLUSTERS = 100_000
"""Of a pool that has ``_IMAGES`` for each, as in the paper."""
_IMAGES, _SEEDS = 16, 4
"""In a smaller pool so many images, and so many seeds of the largest set, make a cluster: in finer ones few seeds meet."""


def _run(state: State, config: RetrievalConfig) -> Result:
    rows, vectors = state.embeddings.of(state.pool, state.alive)
    clusters: Clusters | None = None
    parts: list[Chosen] = []
    sets: list[dict[str, Any]] = []
    largest = max(len(images.whole) for images in state.seeds)
    for number, images in enumerate(state.seeds):
        seeds, asked = state.embeddings.of(images, images.whole)
        method = method_for(len(seeds), config)
        if method == "clusters" and clusters is None:
            clusters = _clusters(vectors, largest, config)
        if method == "clusters":
            assert clusters is not None
            found = by_clusters(
                clusters.assignment, assigned(asked, clusters.centres, config=config.kmeans).assignment,
                seed_set=number, config=config,
            )  # fmt: skip
        elif method == "samples":
            near = search(asked, vectors, count=config.neighbours, config=config.search)
            found = by_samples(near, seed_set=number, config=config)
        else:
            found = by_nearest(search(vectors, asked, count=1, config=config.search), seed_set=number)
        parts.append(_named(found, rows, seeds))
        brought = len(np.unique(found.row))
        sets.append({"set": images.source.address, "seeds": len(seeds), "method": method, "retrieved": brought})
    return _result(state, together(parts), sets, clusters, config)


def _named(found: Chosen, rows: np.ndarray, seeds: np.ndarray) -> Chosen:
    """The same by rows of pool and seed set, for which it has places among those that have embeddings."""
    seed = np.where(found.seed >= 0, seeds[np.maximum(found.seed, 0)], -1)
    return Chosen(rows[found.row], found.seed_set, seed, found.rank, found.similarity, found.cluster)


def _result(
    state: State, chosen: Chosen, sets: list[dict[str, Any]], clusters: Clusters | None, config: RetrievalConfig
) -> Result:
    once = chosen.once()
    if not len(once):
        raise DataError(
            f"No image was retrieved: no cluster of the pool holds more than {config.more_than} seeds. Give fewer "
            "retrieval.clusters, a smaller retrieval.more_than, more seeds, or retrieve=samples."
        )
    gone = np.setdiff1d(state.alive, once.row)
    times = np.ones(len(once), dtype=np.int64)
    if config.multiplicity:
        times = np.bincount(chosen.row, minlength=len(state.pool))[once.row]
    if config.method == "all":  # every set brought every image; it counts for the one that it is nearest to
        for number, one in enumerate(sets):
            one["retrieved"] = int((once.seed_set == number).sum())
    arrays = {
        "row": once.row, "seed_set": once.seed_set, "seed": once.seed, "rank": once.rank,
        "similarity": once.similarity, "cluster": once.cluster, "times": times,
    }  # fmt: skip
    facts = {"sets": sets, "clusters": None if clusters is None else len(clusters.centres)}
    dropped = Dropped.alone(gone, np.full(len(gone), "not retrieved"), stage="retrieval")
    return Result(dropped, arrays, facts, state.embeddings.lasting)


def _clusters(vectors: np.ndarray, seeds: int, config: RetrievalConfig) -> Clusters:
    small = max(1, min(len(vectors) // _IMAGES, seeds // _SEEDS))
    count = config.clusters or (_CLUSTERS if len(vectors) >= _CLUSTERS * _IMAGES else small)
    if count > len(vectors):
        raise ConfigError(
            f"retrieval.clusters={count} is more than the {len(vectors)} images that are left; give fewer."
        )
    return kmeans(vectors, clusters=count, seed=config.seed, config=config.kmeans)


def _absent(settings: Any) -> str | None:
    return None if settings.seeds else "seeds= names no images to retrieve for"


RETRIEVAL = Stage(
    about="images of the pool that are like the seeds", run=_run, config=RetrievalConfig, needs=("embedding",),
    depends=depends, absent=_absent,
)  # fmt: skip
