"""Rankings of a gallery, and how good they are.

Of equal similarities that one comes first which a fixed shuffle of the gallery puts first. Galleries are often sorted by what
they show; in their own order, features that are all alike would come out better than chance.

Axes: Q queries, q of them at once, N gallery images, D channels, H relevant images of all queries at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dinoforge.base.errors import DataError
from dinoforge.base.random import numpy_generator
from dinoforge.evaluate.largest import largest

_PAIRS_AT_ONCE = 1 << 24
"""Of a query and a gallery image; bounds memory (about 0.5 GiB), changes no result."""


def rankings(
    queries: Float[Tensor, "Q D"], gallery: Float[Tensor, "N D"], *, count: int | None = None
) -> Iterator[tuple[Int[np.ndarray, " q"], Int[np.ndarray, "q K"], Float[np.ndarray, "q K"]]]:
    """The gallery by its cosine to each query, the most similar first: numbers of queries, gallery rows, cosines.

    Args:
        count: So many of each ranking, or all.

    Raises:
        DataError: A feature is not finite.
    """
    for name, features in (("queries", queries), ("the gallery", gallery)):
        if not features.isfinite().all():
            raise DataError(f"features of {name} hold numbers that are not finite; the backbone is broken.")
    shuffled = torch.from_numpy(numpy_generator(0, "gallery order").permutation(len(gallery)))
    bank = F.normalize(gallery.float(), dim=-1)[shuffled]
    for rows in torch.arange(len(queries)).split(max(1, _PAIRS_AT_ONCE // max(len(bank), 1))):
        similarity = F.normalize(queries[rows].float(), dim=-1) @ bank.T
        if count is None:
            near, order = similarity.sort(dim=-1, descending=True, stable=True)
        else:
            near, order = largest(similarity, count=count)
        yield rows.numpy(), shuffled[order].numpy(), near.numpy()


@dataclass(frozen=True, slots=True)
class Places:
    """Where the relevant images stand in the rankings of q queries."""

    query: Int[np.ndarray, " H"]
    """Sorted."""
    place: Int[np.ndarray, " H"]
    """From 1, among the images that count; rising within a query."""
    nth: Int[np.ndarray, " H"]
    """From 1, among the relevant images of the query."""
    count: Int[np.ndarray, " q"]
    """Relevant images of each query."""

    @classmethod
    def of(cls, relevant: Bool[np.ndarray, "q N"], counted: Bool[np.ndarray, "q N"]) -> Places:
        """From rankings in which some images are relevant, and some do not count: these are as if they were not there."""
        query, at = np.nonzero(relevant & counted)
        count = np.bincount(query, minlength=len(relevant))
        nth = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count) + 1
        place = np.cumsum(counted, axis=1, dtype=np.int32)[query, at].astype(np.int64)
        return cls(query, place, nth, count)

    def average_precision(self, *, trapezoid: bool = False) -> Float64[np.ndarray, " q"]:
        """The mean over the relevant images of the precision of the ranking down to each; NaN where there are none.

        With p(i) the place of relevant image i of R::

            AP = 1/R sum_i  i / p(i)                                            (plain; scikit-learn's)
            AP = 1/R sum_i  (i / p(i) + (i - 1) / (p(i) - 1)) / 2               (trapezoid)

        The second term is the precision just before the image, 1 at the first place: the area below the curve of precision
        and recall by the trapezoidal rule, as Oxford5k's own program has it (Philbin et al. 2007) and the revisited sets kept
        it (Radenovic et al. 2018). It is never above the plain one: a single relevant image at place p > 1 has 1 / 2p, not
        1 / p.
        """
        precision = self.nth / self.place
        if trapezoid:
            before = np.where(self.place == 1, 1.0, (self.nth - 1) / np.maximum(self.place - 1, 1))
            precision = (precision + before) / 2
        with np.errstate(invalid="ignore"):
            found: np.ndarray = np.bincount(self.query, weights=precision, minlength=len(self.count)) / self.count
        return found

    def precision_at(self, k: int) -> Float64[np.ndarray, " q"]:
        """Share of relevant images among the first ``k``, or down to the last relevant one where that comes earlier.

        As in the revisited sets: a query that has less than ``k`` relevant images can reach 1. NaN where there are none.
        """
        last = np.zeros(len(self.count), np.int64)
        last[self.count > 0] = self.place[np.cumsum(self.count)[self.count > 0] - 1]
        deep = np.minimum(last, k)
        within = np.bincount(self.query[self.place <= deep[self.query]], minlength=len(self.count))
        with np.errstate(invalid="ignore"):
            found: np.ndarray = within / deep
        return found

    def first(self) -> Float64[np.ndarray, " q"]:
        """1 where the first image is relevant, else 0; NaN where none is."""
        found = np.where(self.count > 0, 0.0, np.nan)
        found[self.query[self.place == 1]] = 1.0
        return found
