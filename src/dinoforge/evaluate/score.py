"""The noun ``Score``: a number with everything needed to know what it means."""

from __future__ import annotations

from dataclasses import dataclass


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
    backbone: str = ""
    """Fingerprint of the backbone."""
    data: str = ""
    """Fingerprint of the data."""
