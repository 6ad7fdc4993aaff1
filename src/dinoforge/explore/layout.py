"""A collection as a map in the plane: like images lie together.

PCA to 50 directions, then t-SNE (van der Maaten and Hinton 2008, and 2014 for the approximation), as its authors advise; of a
large collection a sample is laid out, the same one always. Clusters are those of all images.

Axes: N images, n of them on the map, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError
from dinoforge.base.random import numpy_generator
from dinoforge.explore.answers import Tell, untold
from dinoforge.explore.collection import Collection
from dinoforge.explore.stored import read_or_make_several
from dinoforge.features.kmeans import KmeansConfig, assigned, kmeans
from dinoforge.features.parts import directions

MOST = 4000
"""Images on a map at most."""
_DIRECTIONS = 50
_PERPLEXITY = 30.0
_FEWEST = 4
"""Images up to which the PCA itself is the map."""
_CLUSTERS = 24
_EACH = 8
"""Images a cluster at least, on average: fewer images have fewer clusters."""
_CONFIG = KmeansConfig(spherical=True, sample=256)
"""Of the clusters: learned from so many images of each."""


@dataclass(frozen=True, slots=True)
class Point:
    """An image on the map."""

    row: int
    x: float
    """From 0 to 1."""
    y: float
    """From 0 to 1."""
    cluster: int
    """From 0, the largest cluster first."""
    label: int | None
    label_name: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Map:
    """A collection in the plane."""

    points: tuple[Point, ...]
    """In the order of the collection."""
    clusters: int
    of: int
    """Images of the collection; there are fewer points where a sample was drawn."""


def map_of(collection: Collection, *, tell: Tell = untold) -> Map:
    """The map; computed once, then stored.

    Raises:
        ConfigError: The library that lays it out is not there; the line names the extra.
        RunError: It cannot be stored.
    """
    made_by = [MOST, _DIRECTIONS, _PERPLEXITY, _FEWEST, _CLUSTERS, _EACH, _CONFIG.model_dump()]
    stored = read_or_make_several(
        collection.folder / "map.npz", fingerprint([collection.fingerprint, *made_by]), lambda: _laid(collection, tell)
    )
    points = []
    for row, (x, y), cluster in zip(
        stored["rows"].tolist(), stored["places"].tolist(), stored["cluster"].tolist(), strict=True
    ):
        about = collection.about(row)
        points.append(Point(row, x, y, cluster, about.label, about.label_name, about.reason))
    return Map(tuple(points), int(stored["clusters"]), len(collection))


def _laid(collection: Collection, tell: Tell) -> dict[str, np.ndarray]:
    rng, images = numpy_generator(0, "map"), len(collection)
    rows = np.sort(rng.choice(images, min(images, MOST), replace=False))
    tell(0, 2, "find clusters")
    cluster = clusters_of(collection.vectors)
    tell(1, 2, "lay out the map")
    places = plane(np.array(collection.vectors[rows]))
    tell(2, 2, "lay out the map")
    return {
        "rows": rows, "places": places, "cluster": cluster[rows], "clusters": np.asarray(int(cluster.max()) + 1)
    }  # fmt: skip


def clusters_of(vectors: Float32[np.ndarray, "N D"]) -> Int[np.ndarray, " N"]:
    """The cluster of every image by spherical k-means, 0 the largest; of equally large ones that of the earlier image first."""
    count = max(1, min(_CLUSTERS, len(vectors) // _EACH))
    found = kmeans(vectors, clusters=count, seed=0, config=_CONFIG)
    cluster = assigned(vectors, found.centres, config=_CONFIG).assignment
    names, first, sizes = np.unique(cluster, return_index=True, return_counts=True)
    rank = np.empty(int(names.max()) + 1, np.int64)
    rank[names[np.lexsort((first, -sizes))]] = np.arange(len(names))
    return rank[cluster]


def plane(vectors: Float32[np.ndarray, "n D"]) -> Float32[np.ndarray, "n 2"]:
    """A place for every vector, x and y from 0 to 1: a function of the vectors.

    Raises:
        ConfigError: scikit-learn is not there.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError("the map needs scikit-learn; `pip install dinoforge[explore]` brings it.") from None
    main = directions(torch.from_numpy(vectors), count=_DIRECTIONS).float().numpy()
    laid = main[:, :2]
    if len(main) > _FEWEST and laid[:, 0].any():
        first = laid / laid[:, 0].std() * 1e-4  # begins as the PCA lies, small, as the library does by itself
        perplexity = min(_PERPLEXITY, (len(main) - 1) / 3)
        laid = TSNE(perplexity=perplexity, init=first, random_state=0).fit_transform(main)
    low, high = laid.min(axis=0), laid.max(axis=0)
    found: np.ndarray = ((laid - low) / np.maximum(high - low, 1e-12)).astype(np.float32)
    return found
