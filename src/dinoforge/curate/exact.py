"""Exact copies: of all images with the same bytes, the first is kept.

Axes: N images, n rows of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from dinoforge.curate.why import Dropped
from dinoforge.data.manifest import firsts

STAGE = "exact copies"


def copied(sha256: Any, rows: Int[np.ndarray, " N"]) -> Dropped:
    """All images but the first of each key, with reason ``exact copy``.

    Args:
        sha256: A pyarrow column; images are equal where it is.
        rows: What they are called in what is given.
    """
    first = firsts(sha256)
    again = np.flatnonzero(first != np.arange(len(first)))
    reason = np.full(len(again), "exact copy")
    return Dropped(rows[again], reason, rows[first[again]], np.ones(len(again), np.float32), STAGE)
