"""Pairs and groups of images that are near copies: what deduplication, the leak check and ``contains`` go by.

Axes: N images, D channels of a descriptor, P pairs, Q queries, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.base.errors import DataError
from dinoforge.features.compressed import Rows
from dinoforge.features.copies import Thumbnails, mirrored
from dinoforge.features.mapped import blocks
from dinoforge.features.search import Neighbours, SearchConfig, search, self_search
from dinoforge.features.verify import VerifyConfig, aligned_similarity

NEIGHBOURS = 64
"""Of each image, as in DINOv2, app. A."""
DUPLICATE = 0.6
"""Cosine of trained descriptors (SSCD) above which two images of a pool are copies (DINOv2, app. A)."""
LEAK = 0.45
"""The same against evaluation images: stricter, so more is removed (DINOv2, app. A)."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Each pair of rows once, the lower row left, sorted; the largest similarity it was found with."""

    left: Int[np.ndarray, " P"]
    right: Int[np.ndarray, " P"]
    similarity: Float32[np.ndarray, " P"]

    def __len__(self) -> int:
        return len(self.left)

    def above(self, threshold: float) -> Pairs:
        """The pairs of a larger similarity."""
        keep = self.similarity > threshold
        return Pairs(self.left[keep], self.right[keep], self.similarity[keep])


def joined(one: Int[np.ndarray, " P"], other: Int[np.ndarray, " P"], similarity: Float[np.ndarray, " P"]) -> Pairs:
    """Pairs from whatever was found: either order, one pair several times, a row with itself (which is no pair)."""
    left, right = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((-similarity, right, left))
    order = order[left[order] != right[order]]
    left, right = left[order], right[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    return Pairs(
        left[fresh].astype(np.int64), right[fresh].astype(np.int64), similarity[order][fresh].astype(np.float32)
    )


def pairs_of(neighbours: Neighbours, *, threshold: float, first: int = 0) -> Pairs:
    """The neighbours above the threshold as pairs: j near i or i near j makes one.

    Args:
        first: Row of the first query, where the queries are a shard of the rows.
    """
    query, rank = np.nonzero(neighbours.similarity > threshold)
    return joined(query + first, neighbours.index[query, rank], neighbours.similarity[query, rank])


def components(pairs: Pairs, *, images: int) -> Int[np.ndarray, " N"]:
    """For each image the lowest row of its component; an image without a pair is its own.

    Raises:
        DataError: A pair names a row that is not there.
    """
    if len(pairs) and not 0 <= int(pairs.left.min()) <= int(pairs.right.max()) < images:
        raise DataError(f"a pair names row {int(pairs.right.max())}, and there are {images} images.")
    from scipy.sparse import coo_array  # a quarter of a second, which commands that join no copies do not wait
    from scipy.sparse.csgraph import connected_components

    edges = (np.ones(len(pairs), dtype=np.int8), (pairs.left, pairs.right))
    _, label = connected_components(coo_array(edges, shape=(images, images)), directed=False)
    _, first = np.unique(label, return_index=True)
    return first[label].astype(np.int64)


LAYOUT_DUPLICATE = 0.925
"""Aligned similarity of ``layout_pairs`` above which two images of a pool are copies. On the toy worlds at 64 pixels (1,500
images of each), unlike pictures reach 0.921; copies by JPEG of quality 20 and more, size, colour, or crops of 30 % have
0.927 and more."""
LAYOUT_LEAK = 0.89
"""The same against evaluation images."""


class LayoutConfig(Config):
    """How near copies are found by the descriptor that needs no weights."""

    candidate: float = Field(default=0.4, ge=-1, lt=1)
    """Cosine of centred descriptors above which a pair is looked at closely."""
    neighbours: int = Field(default=NEIGHBOURS, ge=1)
    """Looked at of each image, and as many of its mirror image."""
    mirror: bool = True
    """Whether a copy may have left and right exchanged."""
    verify: VerifyConfig = VerifyConfig()
    """How it is looked at."""
    search: SearchConfig = SearchConfig()
    """How candidates are found."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs that are worth a close look, some of them with left and right exchanged in one of the two."""

    left: Int[np.ndarray, " P"]
    right: Int[np.ndarray, " P"]
    flip: Bool[np.ndarray, " P"]
    recall: float = 1.0
    """Lowest that was measured of the searches that found them."""

    def __len__(self) -> int:
        return len(self.left)

    def part(self, some: slice) -> Candidates:
        """Some of them."""
        return Candidates(self.left[some], self.right[some], self.flip[some], self.recall)


def centre_of(descriptors: Rows) -> Float32[np.ndarray, " D"]:
    """The mean of all pictures and their mirror images: around it, cosines of unlike pictures scatter around 0.

    Args:
        descriptors: ``[N D]``; some thousand at a time are in memory.
    """
    total = sum((some.astype(np.float64).sum(axis=0) for some in blocks(descriptors)), np.zeros(descriptors.shape[1]))
    mean = (total / max(len(descriptors), 1)).astype(np.float32)
    return (mean + mirrored(mean[None])[0]) / 2


def self_candidates(descriptors: Float[np.ndarray, "N D"], *, config: LayoutConfig) -> Candidates:
    """Of all pairs of rows. Descriptors are those of ``describe``; float16 will do."""
    x = descriptors.astype(np.float32) - centre_of(descriptors)
    near = [self_search(x, count=config.neighbours, threshold=config.candidate, config=config.search)]
    if config.mirror:
        near.append(search(mirrored(x), x, count=config.neighbours, threshold=config.candidate, config=config.search))
    found = [pairs_of(one, threshold=config.candidate) for one in near]
    return _candidates([(one.left, one.right) for one in found], [one.recall for one in near])


def cross_candidates(
    queries: Float32[np.ndarray, "Q D"], database: Float32[np.ndarray, "N D"], *, config: LayoutConfig
) -> Candidates:
    """Of pairs of a query, left, and a row of the database, right; of either the centre of one of both is taken off, see
    ``centre_of``."""
    x = queries
    near = [
        search(one, database, count=config.neighbours, threshold=config.candidate, config=config.search)
        for one in ((x, mirrored(x)) if config.mirror else (x,))
    ]
    places = [np.nonzero(one.similarity > config.candidate) for one in near]
    rows = [(query, one.index[query, rank]) for one, (query, rank) in zip(near, places, strict=True)]
    return _candidates(rows, [one.recall for one in near])


def _candidates(rows: list[tuple[np.ndarray, np.ndarray]], recalls: list[float]) -> Candidates:
    flip = np.concatenate([np.full(len(left), turn == 1) for turn, (left, _) in enumerate(rows)])
    left, right = (np.concatenate(side) for side in zip(*rows, strict=True))
    return Candidates(left, right, flip, min(recalls))


def settled(candidates: Candidates, thumbnails: Rows, *, config: LayoutConfig, workers: int = 1) -> Pairs:
    """The candidates that the comparison of ``verify`` found promising, each pair once with its aligned similarity.

    Args:
        thumbnails: ``[N 32 32 3]``, uint8; read are those of candidates.
        workers: Processes that compare; they change nothing of the result.
    """
    similarity = aligned_similarity(
        thumbnails, candidates.left, candidates.right, mirror=candidates.flip, config=config.verify, workers=workers
    )
    seen = similarity >= 0
    return joined(candidates.left[seen], candidates.right[seen], similarity[seen])


def layout_pairs(thumbnails: Thumbnails, descriptors: Float[np.ndarray, "N D"], *, config: LayoutConfig) -> Pairs:
    """All near copies among pictures, see ``self_candidates`` and ``settled``."""
    return settled(self_candidates(descriptors, config=config), thumbnails, config=config)
