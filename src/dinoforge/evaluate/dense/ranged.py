"""Depth of the images of both sides in one unit, and the range in which it counts.

Axes: Y by X pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from dinoforge.base.errors import DataError
from dinoforge.base.log import say
from dinoforge.data.decode import Picture
from dinoforge.data.depth_units import COLUMN, DISPARITY, METRES, assumes_millimetres, measured
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.dense.truth import with_truth
from dinoforge.evaluate.evaluation import Sides

TRUTH = "depth"
INDOORS, OUTDOORS = 10.0, 80.0
"""Farthest depth in metres of the published protocols for NYU Depth and for KITTI."""
_FAR = 0.1
"""Share of readings beyond the first of them from which on the second is taken."""


@dataclass(frozen=True, slots=True)
class DepthRange:
    """Which readings count."""

    nearest: float
    farthest: float
    unit: Literal["metres", "disparity"]
    middle: float
    """Geometric mean of the readings to learn from."""
    counted: float
    """Largest reading that counts: ``farthest``, but all of disparity where that was not given."""

    def valid(self, truth: Float[np.ndarray, "Y X"]) -> Bool[np.ndarray, "Y X"]:
        """Where a map has a reading that counts."""
        return (truth > 0) & (truth <= self.counted)

    def __str__(self) -> str:
        return f"{self.nearest:g} to {self.farthest:g} {self.unit}"


class Measured(Source):
    """A source whose depth is in metres, or in disparity: float32, 0 where nothing was read.

    Args:
        unit: Of all its maps; None: what the column ``depth_unit`` says of each, else 16-bit integers are millimetres.

    Raises:
        DataError: Some rows are in disparity and others are not.
        ConfigError: No known unit.
    """

    def __init__(self, whole: Source, unit: str | None) -> None:
        self.address, self.rejected, self.by_name = whole.address, whole.rejected, whole.by_name
        self.columns, self._whole, self._told = whole.columns, whole, False
        said = whole.columns.get(COLUMN, np.full(len(whole), "")).astype(np.str_)
        self._units = np.full(len(whole), unit) if unit is not None else said
        kinds = np.unique(self._units).tolist()
        self.disparity = kinds == [DISPARITY]
        if len(kinds) > 1 and DISPARITY in kinds:
            raise DataError(
                f"{self.address} has depth in disparity and in metres together; ?depth_unit= sets one for all."
            )
        for kind in kinds:
            if kind:
                say(
                    f"{self.address}: depth is in {kind if kind in {DISPARITY, *METRES} else f'units of {kind} metres'}."
                )

    def encoded(self, row: int) -> bytes:
        """The bytes that the source has."""
        return self._whole.encoded(row)

    def picture(self, row: int) -> Picture:
        """The picture that the source has."""
        return self._whole.picture(row)

    def stamp(self, row: int) -> str | None:
        """The stamp that the source has."""
        return self._whole.stamp(row)

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """Depth as said above, and what else the source has."""
        found = self._whole.extra(row, name)
        if found is None or name != TRUTH:
            return found
        unit = str(self._units[row])
        if not unit and not self._told and assumes_millimetres(found):
            self._told = True
            say(f"{self.address}: 16-bit depth is taken as millimetres, 0 as no reading; ?depth_unit= says otherwise.")
        return measured(found, unit, name=str(self.columns["id"][row]))


class _Readings:
    """Looks at maps for what their readings are."""

    def __init__(self) -> None:
        self.count = self.far = 0
        self.logs, self.least, self.most = 0.0, np.inf, 0.0

    def __call__(self, _: str, depth: Float[np.ndarray, "Y X"]) -> None:
        there = depth[depth > 0].astype(np.float64)
        if not there.size:
            return
        self.count += there.size
        self.far += int((there > INDOORS).sum())
        self.logs += float(np.log(there).sum())
        self.least, self.most = min(self.least, float(there.min())), max(self.most, float(there.max()))


def measured_sides(
    sides: Sides, *, unit: str | None, nearest: float, farthest: float | None, on_broken: Callable[[str, str], None]
) -> tuple[Sides, DepthRange]:
    """The images of both sides that have a map of depth, in one unit, and the range in which it counts.

    Args:
        unit: See ``Measured``.
        farthest: None: of metres 10, or 80 where more than a tenth of the readings to learn from are beyond 10; of disparity
            the largest of these, and then larger ones count too.

    Raises:
        DataError: No depth, none in the range, a range that ends before it begins, numbers without a unit, or maps of other
            sizes than their pictures.
    """
    both = [Measured(source, unit) for source in (sides.known, sides.asked)]
    if both[0].disparity != both[1].disparity:
        there = [source.address for source in sorted(both, key=lambda source: not source.disparity)]
        raise DataError(f"{there[0]} has depth in disparity and {there[1]} in metres; both sides must agree.")
    found, limits = list[Source](), None
    for source in both:
        seen = _Readings()
        found.append(with_truth(source, TRUTH, seen=seen, on_broken=on_broken))
        if not seen.count:
            raise DataError(f"{source.address} has no reading in its depth: every pixel is 0, negative or no number.")
        limits = limits or _limits(seen, nearest, farthest, disparity=source.disparity)
        if seen.least > limits.counted or seen.most < nearest:
            raise DataError(
                f"{source.address} has no depth from {limits}; its readings go from {seen.least:.4g} to {seen.most:.4g}. Give "
                "another depth.unit=, or depth.nearest= and depth.farthest=."
            )
    assert limits is not None
    return Sides(found[0], found[1]), limits


def _limits(seen: _Readings, nearest: float, farthest: float | None, *, disparity: bool) -> DepthRange:
    """The range in which readings count.

    Raises:
        DataError: It ends before it begins.
    """
    usual = seen.most if disparity else OUTDOORS if seen.far > _FAR * seen.count else INDOORS
    end = usual if farthest is None else farthest
    if nearest >= end:
        raise DataError(
            f"nearest={nearest:g} must be below the farthest depth, {end:g} {'of disparity' if disparity else 'metres'} by the "
            "readings to learn from; give a smaller depth.nearest= or a larger depth.farthest=."
        )
    counted = math.inf if disparity and farthest is None else end
    middle = min(max(float(np.exp(seen.logs / seen.count)), nearest), end)
    return DepthRange(nearest, end, "disparity" if disparity else "metres", middle, counted)
