"""The interface of every tracker, and how a row of metrics becomes flat numbers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dinoforge.base.errors import ConfigError


@runtime_checkable
class Tracker(Protocol):
    """Something that takes a step's numbers."""

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step."""

    def close(self) -> None:
        """Finish what is still to be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a tracker begins with."""

    folder: Path
    """Folder of the run; a tracker writes into a folder of its own name inside."""
    run: str
    """Fingerprint of the run: the same in every start."""
    name: str
    """For people: the folder's name."""
    first: int
    """Steps that this start goes on from."""
    written: int
    """Steps that an earlier start has handed over, perhaps beyond ``first``; a resumed run repeats them bit for bit."""


def library(name: str) -> Any:
    """A tracker's library, which has the name of its extra.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"trackers={name} needs an extra: pip install 'dinoforge[{name}]'.") from None


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A row of metrics with nested names joined by ``/``: ``losses/total``; its step and what is no number are left out."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{name}/")
        elif name != "step" and isinstance(value, (int, float)):
            flat[prefix + name] = float(value)
    return flat
