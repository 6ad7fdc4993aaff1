"""Exact copies: of all images with the same bytes, the first is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def keep_first(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The manifest rows that stay and those that go, each of these with ``reason`` and ``against``, the id it repeats.

    Rows are equal where their ``sha256`` is; the order of ``rows`` decides which is first.
    """
    first: dict[str, str] = {}
    kept: list[Row] = []
    dropped: list[Row] = []
    for row in rows:
        against = first.setdefault(row["sha256"], row["id"])
        if against == row["id"]:
            kept.append(row)
        else:
            dropped.append({**row, "reason": "exact copy", "against": against})
    return kept, dropped
