"""A manifest as a source: the images that it lists, read where they lie.

Faces and the like that a curation was to blur are blurred here, when a picture is decoded. So whoever learns from the manifest
never sees them, whatever size a picture is decoded at, the files of others stay as they are, nothing is stored twice, and
another decision (blur, or not) needs no other files. What reads the files themselves (``encoded``) gets them as they are.

Axes: N rows.
"""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinoforge.base.errors import DataError
from dinoforge.data.blur import blurred
from dinoforge.data.decode import Picture
from dinoforge.data.depth_units import COLUMN
from dinoforge.data.manifest import KNOWN, Manifest, keys, places, read_manifest
from dinoforge.data.sources.options import split_address
from dinoforge.data.sources.packed import Packed, is_packed
from dinoforge.data.sources.source import Opener, Source

_opening: ContextVar[tuple[Path, ...]] = ContextVar("_opening", default=())
"""Manifests that are being opened, each named by the one before."""


class Listed(Source):
    """The rows of a manifest in its order; what is known of a row comes from the manifest, the picture from its source, or
    from a shard beside the manifest where it names one: then no source is opened.

    Args:
        opened: Opens the addresses that the manifest names.

    Raises:
        DataError: No manifest, one without a row, one that names an image which is no longer there, or itself.
    """

    def __init__(self, path: Path, opened: Opener) -> None:
        manifest = read_manifest(path)
        if not len(manifest):
            raise DataError(f"{path} is a manifest without a row.")
        self.address = str(path)
        trail = _opening.get()
        if path.resolve() in trail:
            raise DataError(f"{path} lists images of a manifest that lists its own; scan the images themselves.")
        token = _opening.set((*trail, path.resolve()))
        try:
            self._find(manifest, opened)
        finally:
            _opening.reset(token)
        self.columns = {
            name: manifest.column(name)
            for name in ("id", *KNOWN, *_numbers(manifest))
            if name == "id" or manifest.holds(name)
        }
        self.columns |= self._origin()
        try:
            self.by_name, self._blurred = frozenset(manifest.made.get("by_name", ())), places(manifest)
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {str(error).splitlines()[0]}.") from None
        if len(self._sources) > 1:
            self.columns["source"] = self._part.astype(np.int64)  # to balance by

    def _find(self, manifest: Manifest, opened: Opener) -> None:
        """Which source a row is of, and which of its rows."""
        if manifest.table["source"].null_count:
            raise DataError(f"{self.address} is damaged: not every row names its source.")
        names = manifest.table["source"].combine_chunks().dictionary_encode()
        addresses = names.dictionary.to_pylist()
        for name in addresses:
            if "allow_private" in split_address(name)[1]:
                raise DataError(f"{self.address} lists {name}: only its user may allow private addresses, not a file.")
        self._part = names.indices.to_numpy()
        if is_packed(manifest):
            self._sources: list[Source] = [Packed(Path(self.address), manifest)] * len(addresses)
            self._row = np.arange(len(manifest))
            return
        self._sources = [opened(name) for name in addresses]
        self._row = np.full(len(manifest), -1)
        uris = manifest.table["uri"].cast(pa.large_string()).combine_chunks()
        for index, source in enumerate(self._sources):
            mine = np.flatnonzero(self._part == index)
            wanted = uris.take(pa.array(mine))
            found = pc.index_in(wanted, value_set=keys(source.columns["id"]), skip_nulls=True)
            if found.null_count:
                lost = wanted.filter(pc.is_null(found))
                raise DataError(
                    f"{self.address} lists {lost[0]}{_and_more(len(lost))}, which {source.address} no longer holds; "
                    "scan it again."
                )
            self._row[mine] = found.to_numpy()

    def _origin(self) -> dict[str, np.ndarray]:
        """What the rows' own sources know of where they come from, and of their depth; a manifest does not repeat it."""
        found = {}
        for name in ("url", "robots", COLUMN):
            if any(name in source.columns for source in self._sources):
                found[name] = np.full(len(self._row), "", dtype=object)
                for index, source in enumerate(self._sources):
                    mine = self._part == index
                    found[name][mine] = source.columns[name][self._row[mine]] if name in source.columns else ""
                found[name] = found[name].astype(np.str_)
        return found

    def encoded(self, row: int) -> bytes:
        """The bytes that the row's own source has."""
        return self._sources[self._part[row]].encoded(int(self._row[row]))

    def picture(self, row: int) -> Picture:
        """The picture that the row's own source has, without what is to be blurred in it."""
        found = self._sources[self._part[row]].picture(int(self._row[row]))
        return blurred(found, self._blurred[row]) if row in self._blurred else found

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The ground truth that the row's own source has."""
        return self._sources[self._part[row]].extra(int(self._row[row]), name)

    def stamp(self, row: int) -> str | None:
        """The stamp that the row's own source has, and what is blurred."""
        found = self._sources[self._part[row]].stamp(int(self._row[row]))
        return f"{found} {self._blurred[row].tolist()}" if found is not None and row in self._blurred else found


def _and_more(lost: int) -> str:
    return f" and {lost - 1:,} more" if lost > 1 else ""


def _numbers(manifest: Manifest) -> list[str]:
    """Columns of numbers besides those that every source has; images can be weighed or balanced by them."""
    return [
        field.name
        for field in manifest.table.schema
        if field.name not in KNOWN and (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]
