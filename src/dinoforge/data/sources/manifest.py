"""A manifest as a source: the images that it lists, read where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Picture
from dinoforge.data.manifest import read_manifest
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
        names = [row["source"] for row in rows]
        self._sources = [opened(name) for name in sorted(set(names))]
        number = {name: index for index, name in enumerate(sorted(set(names)))}
        self._part = np.asarray([number[name] for name in names])
        self._row = np.empty(len(rows), dtype=np.int64)
        for index, source in enumerate(self._sources):
            own = {str(name): row for row, name in enumerate(source.columns["id"])}
            for place in np.flatnonzero(self._part == index):
                name = rows[place]["uri"]
                if name not in own:
                    raise DataError(f"{path} lists {name}, which {source.address} no longer holds; scan it again.")
                self._row[place] = own[name]
        self.columns = {"id": np.asarray([row["id"] for row in rows], dtype=np.str_)}
        if any(row["label"] is not None for row in rows):
            labels = [-1 if row["label"] is None else row["label"] for row in rows]
            self.columns["label"] = np.asarray(labels, dtype=np.int64)
        for name in ("label_name", "split"):
            if any(row[name] for row in rows):
                self.columns[name] = np.asarray([row[name] or "" for row in rows], dtype=np.str_)

    def encoded(self, row: int) -> bytes:
        """The bytes that the row's own source has."""
        return self._sources[self._part[row]].encoded(int(self._row[row]))

    def picture(self, row: int) -> Picture:
        """The picture that the row's own source has."""
        return self._sources[self._part[row]].picture(int(self._row[row]))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The ground truth that the row's own source has."""
        return self._sources[self._part[row]].extra(int(self._row[row]), name)
