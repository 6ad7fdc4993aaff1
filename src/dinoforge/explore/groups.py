"""Near copies of one another, and images that are like no other.

Axes: N images, K nearest others of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Int

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError
from dinoforge.data.sources.source import Source
from dinoforge.explore.answers import Shown, Tell, untold
from dinoforge.explore.collection import Collection
from dinoforge.explore.stored import read_or_make_part, read_or_make_several
from dinoforge.features.copies import NAME, SIDE, WIDTH
from dinoforge.features.described import described
from dinoforge.features.descriptors import Descriptors
from dinoforge.features.pairs import LAYOUT_DUPLICATE, LayoutConfig, Pairs, components, joined, layout_pairs
from dinoforge.features.search import SearchConfig, self_search

MOST = 1000
"""Groups, or outliers, that are shown at most."""
NEIGHBOURS = 10
"""Over so many nearest others the distance of an outlier is the mean (k-NN outlier detection; Angiulli and Pizzuti 2002)."""
_AT_ONCE = 1024
_FILE = "copies.npz"
_NOTHING = (
    np.zeros(0, np.str_), np.zeros(0, np.str_), np.zeros((0, SIDE, SIDE, 3), np.uint8), np.zeros((0, WIDTH), np.float16),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are near copies of one another, in the order of the collection."""

    images: tuple[Shown, ...]
    similarity: float
    """The least of the pairs that were found in it; 1 for the same bytes."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Near copies of a collection."""

    groups: tuple[Group, ...]
    """Largest first; as many as were asked for."""
    total: int
    """Groups in all."""
    images: int
    """Images in all groups."""
    threshold: float
    """Aligned similarity above which two images are near copies."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """An image that is like few others."""

    image: Shown
    distance: float
    """Mean cosine distance (1 - cosine) to its nearest other images."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """The images farthest from all others, farthest first."""

    images: tuple[Outlier, ...]
    neighbours: int
    """Over so many nearest ones the distance is the mean."""


def near_copies(collection: Collection, *, count: int = 100, tell: Tell = untold) -> Copies:
    """Groups of near copies, by the descriptor that needs no weights; computed once, then stored, part by part.

    A group is what hangs together by pairs: of a chain a, b, c, a need not be a copy of c.

    Raises:
        ConfigError: Not 1 to ``MOST`` groups.
        RunError: What was found cannot be stored.
    """
    _check(count, "groups")
    made_by = fingerprint([collection.fingerprint, NAME, SIDE, WIDTH, LAYOUT_DUPLICATE, LayoutConfig().model_dump()])
    stored = read_or_make_several(collection.folder / _FILE, made_by, lambda: _pairs(collection, made_by, tell))
    pairs = Pairs(stored["left"], stored["right"], stored["similarity"])
    group = components(pairs, images=len(collection))
    first, sizes = np.unique(group, return_counts=True)
    order = [at for at in np.lexsort((first, -sizes)) if sizes[at] > 1]
    least = np.full(len(collection), np.inf)
    np.minimum.at(least, group[pairs.left], pairs.similarity)
    groups = tuple(
        Group(tuple(collection.about(int(row)) for row in np.flatnonzero(group == first[at])), float(least[first[at]]))
        for at in order[:count]
    )
    return Copies(groups, len(order), int(sizes[order].sum()), LAYOUT_DUPLICATE)


def _pairs(collection: Collection, made_by: str, tell: Tell) -> dict[str, np.ndarray]:
    """All pairs of near copies, those with the same bytes among them."""
    found, rows = _described(collection, made_by, tell)
    tell(0, 1, "compare near copies")
    near = layout_pairs(found.thumbnails, found.values, config=LayoutConfig()).above(LAYOUT_DUPLICATE)
    same = np.asarray([*_same(found.sha256)], np.int64).reshape(-1, 2)
    pairs = joined(
        rows[np.concatenate([near.left, same[:, 0]])], rows[np.concatenate([near.right, same[:, 1]])],
        np.concatenate([near.similarity, np.ones(len(same), np.float32)]),
    )  # fmt: skip
    tell(1, 1, "compare near copies")
    return {"left": pairs.left, "right": pairs.right, "similarity": pairs.similarity}


def _described(collection: Collection, made_by: str, tell: Tell) -> tuple[Descriptors, Int[np.ndarray, " n"]]:
    """Descriptors that need no weights of all images that can still be read, and their rows."""
    source, made_by, parts = (
        collection.source,
        f"{made_by} {_AT_ONCE}",
        [_part(Descriptors(*_NOTHING), np.zeros(0, np.int64))],
    )
    for start in range(0, len(source), _AT_ONCE):
        some = np.arange(start, min(start + _AT_ONCE, len(source)))
        parts.append(read_or_make_part(collection.folder / _FILE, start, made_by, partial(_describe, source, some)))
        tell(int(some[-1]) + 1, len(source), "describe images to find near copies")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Descriptors(whole["ids"], whole["sha256"], whole["thumbnails"], whole["values"]), whole["rows"]


def _describe(source: Source, some: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    found, usable = described(source.select(some), like=Descriptors(*_NOTHING), workers=0)
    return _part(found, some[usable])


def _part(found: Descriptors, rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    return {name: getattr(found, name) for name in ("ids", "sha256", "thumbnails", "values")} | {"rows": rows}


def _same(keys: np.ndarray) -> Iterator[tuple[int, int]]:
    """Every image with the first one that has the same bytes."""
    first: dict[str, int] = {}
    for row, key in enumerate(keys.tolist()):
        if first.setdefault(key, row) != row:
            yield first[key], row


def outliers(collection: Collection, *, count: int = 50, tell: Tell = untold) -> Outliers:
    """The images with the largest mean distance to their nearest others, see ``NEIGHBOURS``; computed once, then stored.

    Raises:
        ConfigError: Not 1 to ``MOST`` images.
        RunError: What was found cannot be stored.
    """
    _check(count, "images")
    neighbours = min(NEIGHBOURS, len(collection) - 1)
    made_by = fingerprint([collection.fingerprint, NEIGHBOURS, SearchConfig().model_dump()])
    stored = read_or_make_several(
        collection.folder / "outliers.npz", made_by, lambda: {"distance": _distances(collection, tell)}
    )
    far = stored["distance"]
    rows = np.lexsort((np.arange(len(far)), -far))[:count].tolist()
    return Outliers(tuple(Outlier(collection.about(row), float(far[row])) for row in rows), neighbours)


def _distances(collection: Collection, tell: Tell) -> Float32[np.ndarray, " N"]:
    """The mean cosine distance of every image to its nearest others; 0 where there are no others."""
    if len(collection) == 1:
        return np.zeros(1, np.float32)
    tell(0, len(collection), "compare all images to find outliers")
    found = self_search(collection.vectors, count=min(NEIGHBOURS, len(collection) - 1), config=SearchConfig())
    near: np.ndarray = np.where(found.index >= 0, found.similarity, 0)
    counts = np.maximum((found.index >= 0).sum(axis=1), 1)
    tell(len(collection), len(collection), "compare all images to find outliers")
    distance: np.ndarray = (1 - near.sum(axis=1) / counts).astype(np.float32)
    return distance


def _check(count: int, what: str) -> None:
    if not 1 <= count <= MOST:
        raise ConfigError(f"1 to {MOST:,} {what} can be shown; got {count}.")
