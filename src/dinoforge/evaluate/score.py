"""The noun ``Score``: a number with everything needed to know what it means.

Axes: N items, R samples of them, U units of each item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from dinoforge.base.random import numpy_generator

_RESAMPLES = 1000
_SHARE = (0.025, 0.975)
_NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Score:
    """One result of one evaluation."""

    task: str
    name: str
    value: float
    unit: str
    """``fraction`` (0 to 1) unless something else is said."""
    higher_is_better: bool
    n: int
    """Images, or whatever was counted."""
    protocol: str
    """How it was measured, in words and numbers."""
    interval: tuple[float, float] | None = None
    """Intervals drawn like this hold the score of all such images in about 95 of 100 cases (bootstrap)."""
    spread: float | None = None
    """Standard deviation over seeds or tries; None where there was one."""
    backbone: str = ""
    """Fingerprint of the backbone."""
    data: str = ""
    """Fingerprint of the data."""


def mean_interval(items: Float[np.ndarray, " N"], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean, from 1,000 samples of as many items with replacement (percentiles; Efron 1979)."""
    return interval(lambda rows: items[rows].mean(axis=-1), len(items), seed=seed)


def interval(
    statistic: Callable[[Int[np.ndarray, "R N"]], Float[np.ndarray, " R"]], count: int, *, seed: int = 0,
    resamples: int = _RESAMPLES,
) -> tuple[float, float]:  # fmt: skip
    """The 95 % bootstrap interval of any statistic of ``count`` items.

    Args:
        statistic: Of R samples at once, each N row numbers.
        resamples: How many samples are drawn.
    """
    low, high = np.quantile(_resampled(statistic, count, seed=seed, resamples=resamples), _SHARE)
    return float(low), float(high)


def shared_interval(
    parts: Float[np.ndarray, " N"], wholes: Float[np.ndarray, " N"], units: Int[np.ndarray, "N U"], *, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of ``sum(parts) / sum(wholes)`` over items that share what they were measured on.

    Objects of one clip are no independent sample, nor are pairs that have a picture in common. So units are drawn, clips or
    pictures, and an item counts as often as the product of its units' draws; samples without any item are passed over. For
    pairs of pictures this errs on the wide side (Owen 2007), the more so the fewer pairs a picture is in.

    Args:
        units: Numbers of each item's units, the same for the same clip or picture.

    Returns:
        None where all items have the same units: nothing then says how others would differ.
    """
    if (np.sort(units, axis=1) == np.sort(units[:1], axis=1)).all():
        return None
    numbers, number = np.unique(units, return_inverse=True)
    number = number.reshape(units.shape)

    def statistic(samples: Int[np.ndarray, "R N"]) -> Float[np.ndarray, " R"]:
        often = (np.bincount(rows, minlength=len(numbers))[number].prod(axis=1) for rows in samples)
        sums = np.asarray([(times @ parts, times @ wholes) for times in often])
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)

    low, high = np.nanquantile(_resampled(statistic, len(numbers), seed=seed), _SHARE)
    return float(low), float(high)


def _resampled(
    statistic: Callable[[Int[np.ndarray, "R N"]], Float[np.ndarray, " R"]], count: int, *, seed: int,
    resamples: int = _RESAMPLES,
) -> Float[np.ndarray, " n"]:  # fmt: skip
    """The statistic of every sample, drawn with replacement."""
    rng, found = numpy_generator(seed, "bootstrap"), list[np.ndarray]()
    at_once = max(1, _NUMBERS_AT_ONCE // max(count, 1))
    for start in range(0, resamples, at_once):
        found.append(statistic(rng.integers(0, count, (min(at_once, resamples - start), count))))
    return np.concatenate(found)
