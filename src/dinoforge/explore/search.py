"""Search by a picture, or by a place in one.

Axes: H by W patches, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.ndimage import label

from dinoforge.base.errors import ConfigError
from dinoforge.explore.answers import Asked, Box, Shown
from dinoforge.explore.collection import Collection
from dinoforge.features.exact import nearest_units, unit_rows

MOST = 200
"""Answers to one question at most."""
_LEAST = 1e-12
"""Patches that a box covers, up to which it has no inside: the edges of the patches are no more exact."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that is like the one asked for."""

    image: Shown
    similarity: float
    """Cosine of the image features."""


@dataclass(frozen=True, slots=True)
class RegionHit:
    """An image with a place that is like the one asked for."""

    image: Shown
    similarity: float
    """Cosine of its best patch with the mean patch asked for."""
    box: Box
    """Around that patch and those beside it that are nearer to it in likeness than to the image's median patch."""
    best: tuple[float, float]
    """The middle of that patch: x and y."""


def by_image(collection: Collection, asked: Asked, *, count: int = 24) -> list[Hit]:
    """The nearest images, nearest first; a row of the collection is not its own neighbour.

    Raises:
        ConfigError: No such row, or not 1 to ``MOST`` answers.
        DataError: The picture cannot be read.
    """
    _check(count)
    own = collection.known(asked) if isinstance(asked, int) else -1
    query = collection.vectors[own] if own >= 0 else collection.see(asked).image
    index, similarity = nearest_units(query[None], collection.vectors, count=count + (own >= 0))
    found = zip(index[0].tolist(), similarity[0].tolist(), strict=True)
    return [Hit(collection.about(row), near) for row, near in found if row not in {own, -1}][:count]


def by_region(collection: Collection, asked: Asked, box: Box, *, count: int = 24) -> list[RegionHit]:
    """Places like the one in a box, one an image, nearest first; a row of the collection is not its own neighbour.

    The patches in the box, each by the share of it that lies inside, are averaged, and the mean is compared with every patch.

    Raises:
        ConfigError: No such row, a box without an inside or beyond the picture, or not 1 to ``MOST`` answers.
        DataError: The picture cannot be read.
    """
    _check(count)
    weight = covered(box, *collection.grid)
    query = mean_patch(collection.see(asked).patches, weight)
    found = collection.places.nearest(query, count=count, without=asked if isinstance(asked, int) else None)
    hits = []
    for row, similarity in zip(found.rows.tolist(), found.similarity, strict=True):
        tall, wide = similarity.shape
        y, x = divmod(int(similarity.argmax()), wide)
        around = _around(alike(similarity))
        hits.append(
            RegionHit(collection.about(row), float(similarity[y, x]), around, ((x + 0.5) / wide, (y + 0.5) / tall))
        )
    return hits


def covered(box: Box, tall: int, wide: int) -> Float64[np.ndarray, "H W"]:
    """How much of every patch of a grid lies in a box, from 0 to 1.

    Raises:
        ConfigError: A box without an inside, or beyond the picture.
    """
    left, top, right, bottom = box
    if not all(math.isfinite(side) for side in box) or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        given = ", ".join(f"{side:g}" for side in box)
        raise ConfigError(f"a box is left < right and top < bottom, in shares of the picture from 0 to 1; got {given}.")

    def share(count: int, low: float, high: float) -> np.ndarray:
        edges = np.arange(count + 1) / count
        return np.maximum(0.0, np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)) * count

    found: np.ndarray = np.outer(share(tall, top, bottom), share(wide, left, right))
    if not found.sum() > _LEAST:
        raise ConfigError(f"a box without an inside: {right - left:g} by {bottom - top:g} of the picture.")
    return found


def mean_patch(patches: Float32[np.ndarray, "H W D"], weight: Float64[np.ndarray, "H W"]) -> Float32[np.ndarray, " D"]:
    """The mean of patches of length 1, each with its weight."""
    flat = unit_rows(patches.reshape(-1, patches.shape[-1]))
    found: np.ndarray = (weight / weight.sum()).reshape(-1).astype(np.float32) @ flat
    return found


def alike(similarity: Float32[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The best patch, and those that hang together with it and are nearer to it in likeness than to the median."""
    best = similarity.max()
    high = similarity >= (best + np.median(similarity)) / 2
    pieces, _ = label(high, structure=np.ones((3, 3)))
    found: np.ndarray = pieces == pieces.flat[similarity.argmax()]
    return found


def _around(patches: Bool[np.ndarray, "H W"]) -> Box:
    tall, wide = patches.shape
    rows, columns = np.flatnonzero(patches.any(axis=1)), np.flatnonzero(patches.any(axis=0))
    return (
        float(columns[0] / wide), float(rows[0] / tall), float((columns[-1] + 1) / wide), float((rows[-1] + 1) / tall)
    )  # fmt: skip


def _check(count: int) -> None:
    if not 1 <= count <= MOST:
        raise ConfigError(f"a search gives 1 to {MOST} answers; got {count}.")
