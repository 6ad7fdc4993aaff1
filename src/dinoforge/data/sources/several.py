"""Sources one after another."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from dinoforge.data.decode import Picture
from dinoforge.data.sources.numbers import agreed
from dinoforge.data.sources.source import Source

_BLANK = {"i": np.int64(-1), "f": np.float64("nan"), "U": np.str_(""), "O": ""}
"""By kind of column: what stands for a source that does not know."""


class Several(Source):
    """Sources one after another, with the columns that any of them can fill; a class has one number in all (``agreed``).

    Where two of them call a row the same, all their ids begin with the name of their file.
    """

    def __init__(self, address: str, parts: Sequence[Source]) -> None:
        parts = agreed(parts)
        self.address, self._parts = address, parts
        self.by_name = frozenset(
            name for name in ("label", "group")
            if all(name in part.by_name for part in parts if name in part.columns)
        ) & {name for part in parts for name in part.columns}  # fmt: skip
        self.rejected = [line for part in parts for line in part.rejected]
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        names = sorted({name for part in parts for name in part.columns})
        kinds = {name: column.dtype.kind for part in parts for name, column in part.columns.items()}

        def blank(name: str, part: Source) -> np.ndarray:
            return np.full(len(part), _BLANK[kinds[name]])

        self.columns = {
            name: np.concatenate([part.columns[name] if name in part.columns else blank(name, part) for part in parts])
            for name in names
        }
        if len(np.unique(self.columns["id"])) < len(self.columns["id"]):
            self.columns["id"] = _told_apart(parts)

    def _find(self, row: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[part], row - int(self._starts[part])

    def encoded(self, row: int) -> bytes:
        """The bytes that the row's own source has."""
        part, own = self._find(row)
        return part.encoded(own)

    def picture(self, row: int) -> Picture:
        """The picture that the row's own source has."""
        part, own = self._find(row)
        return part.picture(own)

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The ground truth that the row's own source has."""
        part, own = self._find(row)
        return part.extra(own, name)

    def stamp(self, row: int) -> str | None:
        """The stamp that the row's own source has."""
        part, own = self._find(row)
        return part.stamp(own)


def _told_apart(parts: Sequence[Source]) -> np.ndarray:
    """The ids of sources that use the same ones, each behind the name of its file."""
    addresses = [part.address for part in parts]
    shared = os.path.commonprefix(addresses).rpartition("/")[0]  # noqa: RUF071 - it is cut at a slash here
    names = [address.removeprefix(shared).lstrip("/") for address in addresses]
    if len(set(names)) < len(names):
        names = [f"{number}:{name}" for number, name in enumerate(names)]
    return np.concatenate(
        [np.char.add(f"{name}:", part.columns["id"]) for name, part in zip(names, parts, strict=True)]
    )
