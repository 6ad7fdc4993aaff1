"""Schedules as pure functions of the step: nothing to save, nothing to advance, easy to plot and to test.

Lengths are shares of the plan (0 to 1), so a shorter plan compresses its schedules and no unit depends on the batch.
"""

from __future__ import annotations

import math

from pydantic import Field

from dinoforge.base.config import Config


class Cosine(Config):
    """Linear warm-up, then half a cosine from ``peak`` to ``end`` (DINOv2's cosine scheduler, training code).

    Over ``n`` steps with ``w`` warm-up and ``f`` frozen steps::

        value(i) = 0                                                         i < f
                   start + (peak - start) (i - f) / (w - 1)                  f <= i < f + w
                   end + (peak - end) (1 + cos(pi (i - f - w) / (n - f - w))) / 2   up to n
                   end                                                       from n on

    The warm-up includes both of its ends, so ``peak`` stands twice, as in the released code.
    """

    start: float = 0.0
    """Value at the first warm-up step."""
    peak: float
    """Value at the end of the warm-up."""
    end: float
    """Value that the cosine approaches; held after the last step."""
    warmup: float = Field(default=0.0, ge=0, le=1)
    """Length of the warm-up, as a share of the plan."""
    frozen: float = Field(default=0.0, ge=0, le=1)
    """Length of a first stretch held at 0, as a share of the plan."""

    def at(self, step: int, *, steps: int) -> float:
        """Value at ``step`` (from 0) of a plan of ``steps``."""
        frozen, warmup = share(self.frozen, steps), share(self.warmup, steps)
        if step < frozen:
            return 0.0
        since = step - frozen
        if since < warmup:
            return _line(self.start, self.peak, since, warmup)
        length = steps - frozen - warmup
        if since - warmup >= length:
            return self.end
        return self.end + 0.5 * (self.peak - self.end) * (1 + math.cos(math.pi * (since - warmup) / length))


class Ramp(Config):
    """Linear from ``start`` to ``end``, then constant: the teacher's temperature (DINO, sec. 3.2)."""

    start: float
    """Value at the first step."""
    end: float
    """Value at the end of the ramp and after it."""
    length: float = Field(default=0.0, ge=0, le=1)
    """Length of the ramp, as a share of the plan."""

    def at(self, step: int, *, steps: int) -> float:
        """Value at ``step`` (from 0) of a plan of ``steps``."""
        length = share(self.length, steps)
        return _line(self.start, self.end, step, length) if step < length else self.end


def share(part: float, steps: int) -> int:
    """The number of steps that a share of a plan stands for."""
    return round(part * steps)


def _line(start: float, end: float, index: int, points: int) -> float:
    """Point ``index`` of ``points`` evenly spaced ones, both ends included; a single point is ``start``."""
    return start if points == 1 else start + (end - start) * index / (points - 1)
