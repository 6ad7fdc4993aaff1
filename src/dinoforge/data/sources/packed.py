"""The images of a manifest that lie in tar shards beside it: read by offset, in any order, no header looked at.

Axes: N rows.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken
from dinoforge.data.manifest import Manifest
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import Disk


class Packed(Source):
    """Rows of a manifest with the columns ``shard``, ``offset`` and ``bytes``. Knows nothing of them but their files.

    Raises:
        DataError: A shard is not there or too short, or lies elsewhere than beside the manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.address = str(path)
        self.columns = {"id": manifest.column("id")}
        names = manifest.table["shard"].combine_chunks().dictionary_encode()
        self._offset, self._size = manifest.column("offset"), manifest.column("bytes")
        if names.null_count or min(self._offset.min(), self._size.min()) < 0:
            raise DataError(f"{path} is a damaged manifest: not every row says where in a shard it lies.")
        self._shard = np.asarray(names.indices.to_numpy(zero_copy_only=False))
        self._places: list[str] = []
        self._changed: list[str] = []
        end = self._offset + self._size
        for number, name in enumerate(names.dictionary.to_pylist()):
            self._add(path, name, int(end[self._shard == number].max(initial=0)))

    def _add(self, path: Path, name: str, end: int) -> None:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:  # a manifest of unknown origin names no file elsewhere
            raise DataError(f"{path} names a shard outside its folder: {name}.")
        place = str(path.parent / parts)
        try:
            size, changed = Disk().stamp(place)
        except Broken as error:
            raise DataError(f"{path} lists images in {name}, which should lie beside it: {error}.") from None
        if size < end:
            raise DataError(f"{path} lists images up to byte {end:,} of {name}, which has {size:,}; copy it again.")
        self._places.append(place)
        self._changed.append(f"{size}:{changed}")

    def encoded(self, row: int) -> bytes:
        """The image file's own bytes."""
        size = int(self._size[row])
        part = Disk().part(self._places[self._shard[row]], int(self._offset[row]), size)
        if len(part) != size:
            raise Broken("the shard is shorter than when it was opened")
        return part

    def stamp(self, row: int) -> str | None:
        """That of the whole shard, and where the image lies in it."""
        return f"{self._changed[self._shard[row]]}:{self._offset[row]}:{self._size[row]}"


def is_packed(manifest: Manifest) -> bool:
    """Whether the images lie in shards beside the manifest."""
    return manifest.holds("shard") and manifest.holds("offset")
