"""In which order images are seen: computed, never stored, so any position of the endless stream can be asked for.

Axes: n positions, N images.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int, UInt64
from pydantic import Field

from dinoforge.base.config import Config
from dinoforge.base.errors import DataError, unknown
from dinoforge.base.random import key, numpy_generator

_ROUNDS = 6


class SamplingConfig(Config):
    """How often each image is seen. By default every image once a pass."""

    weight: str | None = None
    """Column of numbers: an image is seen so many times as often as one with weight 1; 0 is never."""
    balance: str | None = None
    """Column of classes, clusters or sources: its values are seen equally often, however many images each has."""
    balance_power: float = Field(default=1.0, gt=0, le=1)
    """1 balances wholly; 0.5 sees a value in proportion to the square root of its images."""


EVENLY = SamplingConfig()
"""Every image once a pass."""


class Order:
    """The stream of rows: a new permutation each pass, or rows by weight.

    With weights a pass still has as many positions as there are images. It is cut into equal strata, one draw falls into each
    (systematic sampling with a random place inside), so every image is seen its expected number of times, rounded up or down.

    Args:
        weights: How often each image is seen, relative to the others; None: all alike.

    Raises:
        DataError: No weight is above zero, or one is negative or no number.
    """

    def __init__(self, images: int, *, seed: int, weights: Float[np.ndarray, " N"] | None = None) -> None:
        self.images, self.seed = images, seed
        self._ends: Float[np.ndarray, " N"] | None = None
        if weights is None:
            return
        wrong = ~(np.isfinite(weights) & (weights >= 0))
        if wrong.any():
            raise DataError(
                f"Weights take finite numbers from 0 up; row {int(wrong.argmax())} has {weights[wrong][0]}."
            )
        if not weights.any():
            raise DataError("No image has a weight above 0.")
        ends = np.cumsum(weights, dtype=np.float64)
        self._ends = ends / ends[-1] * images
        self._last = int(np.flatnonzero(weights)[-1])

    def at(self, positions: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Row of every position, and which of the row's draws it is: no two positions have both in common.

        Without weights the draw is the number of the pass.
        """
        passes, places = np.divmod(positions.astype(np.int64), self.images)
        strata = np.empty_like(places)
        inside = np.empty(len(places))
        for number in np.unique(passes):
            here = passes == number
            strata[here] = permute(places[here], images=self.images, seed=key(self.seed, "order", int(number)))
            if self._ends is not None:
                inside[here] = numpy_generator(self.seed, "stratum", int(number)).random()
        if self._ends is None:
            return strata, passes
        # One random place for all strata of a pass: the number of draws that fall on a row is then its expected one, rounded.
        rows = np.searchsorted(self._ends, strata + inside, side="right").clip(max=self._last)
        starts = np.where(rows > 0, self._ends[rows - 1], 0.0)
        occurrence = strata - np.ceil(starts - inside).astype(np.int64).clip(min=0)
        return rows, passes * self.images + occurrence


def weights_of(columns: Mapping[str, np.ndarray], config: SamplingConfig) -> Float[np.ndarray, " N"] | None:
    """The weights that the settings ask for; None where every image is seen alike.

    Raises:
        ConfigError: No such column.
        DataError: A weight column that holds no numbers.
    """
    if config.weight is None and config.balance is None:
        return None
    weights = np.ones(len(columns["id"]))
    for setting, name in (("weight", config.weight), ("balance", config.balance)):
        if name is not None and name not in columns:
            raise unknown(f"data.sampling.{setting}", name, sorted(columns))
    if config.weight is not None:
        given = columns[config.weight]
        if given.dtype.kind not in "iuf":
            raise DataError(f"data.sampling.weight={config.weight} takes a column of numbers; it holds texts.")
        weights = weights * given
    if config.balance is not None:
        _, number, count = np.unique(columns[config.balance], return_inverse=True, return_counts=True)
        weights = weights * (count.astype(np.float64) ** -config.balance_power)[number]
    return weights


def permute(places: Int[np.ndarray, " n"], *, images: int, seed: int) -> Int[np.ndarray, " n"]:
    """Where a pseudo-random permutation of ``range(images)`` sends the given places.

    A balanced Feistel network on the next power of four (Luby & Rackoff 1988); what falls outside walks on until it falls
    inside (Black & Rogaway 2002), so it is a bijection for every number of images, without a table.
    """
    half = max(1, ((images - 1).bit_length() + 1) // 2)
    keys = [np.uint64(key(seed, "round", number)) for number in range(_ROUNDS)]
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        found[outside] = _network(found[outside], half, keys)
        outside = found >= images
    return found.astype(np.int64)


def _network(values: UInt64[np.ndarray, " n"], half: int, keys: list[np.uint64]) -> UInt64[np.ndarray, " n"]:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for round_key in keys:
        left, right = right, left ^ (_mix(right + round_key) & mask)
    return (left << bits) | right


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input reaches every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
