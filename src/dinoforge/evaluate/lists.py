"""Settings that are lists: written with commas or as lists, one value alone too."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")
N = TypeVar("N", int, float)


def listed(value: Any) -> Any:
    """``a,b`` and a number alone as a list; all else as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def once(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a value that stands twice."""
    if len({*values}) < len(values):
        raise ValueError(f"takes each value once; got {list(values)}.")
    return values


def rising(values: tuple[N, ...]) -> tuple[N, ...]:
    """In rising order, each once."""
    return tuple(sorted(set(values)))
