"""The noun ``Score``: a number with everything needed to know what it means."""

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
    """Between which values the score of another sample of as many images would lie in 95 of 100 cases (bootstrap)."""
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
    rng, found = numpy_generator(seed, "bootstrap"), list[np.ndarray]()
    at_once = max(1, _NUMBERS_AT_ONCE // max(count, 1))
    for start in range(0, resamples, at_once):
        found.append(statistic(rng.integers(0, count, (min(at_once, resamples - start), count))))
    low, high = np.quantile(np.concatenate(found), _SHARE)
    return float(low), float(high)
