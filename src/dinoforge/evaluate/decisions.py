"""How good many decisions are of which each was made with some confidence, all of them ranked together.

Axes: S decisions, Q queries that they are about, T confidences that differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from dinoforge.evaluate.score import interval

_FEWEST = 20
"""Queries with something to find, below which another sample might have none."""
_MOST = 1 << 20
"""Decisions above which no interval is drawn: it takes a thousand passes over them."""


@dataclass(frozen=True)
class Decisions:
    """Decisions, whatever they are: that a pair is a copy, or that a picture shows a certain thing.

    Equal confidences cannot be told apart by any threshold, so they are taken or left together.
    """

    confidence: Float[np.ndarray, " S"]
    right: Bool[np.ndarray, " S"]
    query: Int[np.ndarray, " S"]
    """Which of the queries each is about."""
    wanted: Int[np.ndarray, " Q"]
    """How many right decisions there are to make about each query, made or not."""

    def average_precision(self) -> float:
        """The precision down to each right decision, averaged over all there are to make (micro AP, GAP; Perronnin 2009).

        ::

            sum over right decisions of (right ones above it, with it) / (all above it, with it), divided by sum(wanted)
        """
        return float(self._average_precision(np.ones(len(self.wanted))))

    def recall_at(self, precision: float) -> float:
        """The largest share of what there is to find at any threshold that leaves so large a precision; 0 where none does."""
        hits, taken = self._curve(np.ones(len(self.wanted)))
        fine = hits >= precision * taken - 1e-9
        return float(hits[fine].max(initial=0.0) / self.wanted.sum())

    def interval(self) -> tuple[float, float] | None:
        """Of the average precision, over samples of the queries with all decisions about them; None where there are too few
        queries with something to find, or too many decisions."""
        if np.count_nonzero(self.wanted) < _FEWEST or len(self.confidence) > _MOST:
            return None
        queries = len(self.wanted)
        return interval(
            lambda samples: np.asarray(
                [self._average_precision(np.bincount(rows, minlength=queries).astype(float)) for rows in samples]
            ),
            queries,
        )

    @cached_property
    def _ranked(self) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " T"]]:
        """The decisions, the surest first, and the last place of each confidence."""
        order = np.argsort(-self.confidence, kind="stable")
        sure = self.confidence[order]
        ends = np.flatnonzero(np.append(sure[1:] != sure[:-1], [True] * (len(sure) > 0)))
        return order, ends

    def _curve(self, times: Float64[np.ndarray, " Q"]) -> tuple[Float64[np.ndarray, " T"], Float64[np.ndarray, " T"]]:
        """Right decisions, and all, down to each confidence, where every query stands there so many times."""
        order, ends = self._ranked
        weight = times[self.query[order]]
        return np.cumsum(weight * self.right[order])[ends], np.cumsum(weight)[ends]

    def _average_precision(self, times: Float64[np.ndarray, " Q"]) -> float:
        hits, taken = self._curve(times)
        return float((np.diff(hits, prepend=0.0) * hits / np.maximum(taken, 1.0)).sum() / (times * self.wanted).sum())
