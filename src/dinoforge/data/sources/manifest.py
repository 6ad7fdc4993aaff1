"""A manifest as a source: the images that it lists, read where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Picture
from dinoforge.data.manifest import read_manifest
from dinoforge.data.sources.columns import NUMBERS, TEXTS
from dinoforge.data.sources.source import Opener, Source


class Listed(Source):
    """The rows of a manifest in its order; what is known of a row comes from the manifest, the picture from its source.

    Args:
        opened: Opens the addresses that the manifest names.

    Raises:
        DataError: No manifest, one without a row, or one that names an image which is no longer there.
    """

    def __init__(self, path: Path, opened: Opener) -> None:
        rows, _ = read_manifest(path)
        if not rows:
            raise DataError(f"{path} is a manifest without a row.")
        self.address = str(path)
        names = np.asarray([row["source"] for row in rows], dtype=np.str_)
        addresses, self._part = np.unique(names, return_inverse=True)
        self._sources = [opened(name) for name in addresses.tolist()]
        wanted = np.asarray([row["uri"] for row in rows], dtype=np.str_)
        self._row = np.empty(len(rows), dtype=np.int64)
        for index, source in enumerate(self._sources):
            places = np.flatnonzero(self._part == index)
            self._row[places] = _rows_of(wanted[places], source, path)
        self.columns = {"id": np.asarray([row["id"] for row in rows], dtype=np.str_), **_columns(rows)}

    def encoded(self, row: int) -> bytes:
        """The bytes that the row's own source has."""
        return self._sources[self._part[row]].encoded(int(self._row[row]))

    def picture(self, row: int) -> Picture:
        """The picture that the row's own source has."""
        return self._sources[self._part[row]].picture(int(self._row[row]))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The ground truth that the row's own source has."""
        return self._sources[self._part[row]].extra(int(self._row[row]), name)


def _rows_of(wanted: np.ndarray, source: Source, path: Path) -> Int[np.ndarray, " n"]:
    """In which rows of a source the wanted ids are.

    Raises:
        DataError: The source no longer has one.
    """
    ids = source.columns["id"]
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    found = order[place]
    gone = np.flatnonzero(ids[found] != wanted)
    if len(gone):
        raise DataError(f"{path} lists {wanted[gone[0]]}, which {source.address} no longer holds; scan it again.")
    return found.astype(np.int64)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What the manifest says of its rows, of the columns that every source uses."""
    found: dict[str, np.ndarray] = {}
    for name in NUMBERS:
        if any(row.get(name) is not None for row in rows):
            values = [-1 if row.get(name) is None else row[name] for row in rows]
            found[name] = np.asarray(values, dtype=np.int64)
    for name in ("label_name", "group_name", *TEXTS):
        if any(row.get(name) for row in rows):
            found[name] = np.asarray([row.get(name) or "" for row in rows], dtype=np.str_)
    return found
