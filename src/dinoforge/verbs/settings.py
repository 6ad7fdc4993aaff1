"""How the settings of a verb that has some of its own, besides its keys, are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """How a verb's settings are shown."""

    described: Callable[[Mapping[str, Any]], Mapping[str, tuple[Any, str]]]
    """From what was typed: every setting with its value and where that came from."""
    lines: Callable[[], Iterator[str]]
    """Every setting with default and meaning."""
