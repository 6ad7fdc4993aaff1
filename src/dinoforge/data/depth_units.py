"""What the numbers of a depth map mean: metres, parts of them, or disparity, which is one over depth up to scale and shift.

Axes: Y by X pixels.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Num

from dinoforge.base.errors import ConfigError, DataError

DISPARITY = "disparity"
METRES = {"metres": 1.0, "centimetres": 0.01, "millimetres": 0.001}
"""Metres in one of each."""
COLUMN = "depth_unit"
"""Column of a source with the unit of each row's depth; empty where the row does not say."""
_TAKES = f"{', '.join(METRES)}, {DISPARITY}, or how many metres one is, such as 0.00390625 for KITTI"


def known_unit(unit: str, *, name: str = "depth_unit") -> str:
    """The unit itself, where it is one.

    Raises:
        ConfigError: It is none.
    """
    if unit == DISPARITY or unit in METRES:
        return unit
    try:
        number = float(unit)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{name} takes {_TAKES}; got {unit!r}.")
    return unit


def measured(values: Num[np.ndarray, "Y X"], unit: str, *, name: str) -> Float[np.ndarray, "Y X"]:
    """A map in metres, or in disparity where that is its unit; 0 where nothing was read.

    Numbers that are not finite, 0 or less are no readings.

    Args:
        unit: See ``known_unit``; empty: 16-bit integers are millimetres.
        name: What the row is called, for messages.

    Raises:
        DataError: Other numbers than 16-bit integers, and no unit.
        ConfigError: No known unit.
    """
    if not unit:
        if not assumes_millimetres(values):
            raise DataError(
                f"{name} has depth as {values.dtype} numbers without a unit; 16-bit integers are millimetres, others need "
                f"?depth_unit= or depth.unit=: {_TAKES}."
            )
        unit = "millimetres"
    scale = 1.0 if unit == DISPARITY else METRES.get(known_unit(unit)) or float(unit)
    found = values.astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(found) & (found > 0), found, np.float32(0))


def assumes_millimetres(values: Num[np.ndarray, "Y X"]) -> bool:
    """Whether a map of no stated unit is taken as millimetres."""
    return values.dtype.kind in "iu" and values.dtype.itemsize == 2
