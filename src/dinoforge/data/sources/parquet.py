"""Parquet files with an image a row: its bytes (what the Hugging Face hub and most exports hold) or its path."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinoforge.base.errors import ConfigError, DataError, closest
from dinoforge.data.decode import Broken
from dinoforge.data.ground_truth import ground_truth
from dinoforge.data.sources.columns import by_folder, is_plain, known_columns, refuse_doubles, texts, with_split
from dinoforge.data.sources.lists import path_column, unique_names
from dinoforge.data.sources.options import ACCESS, COLUMNS, Options, scheme_of, shown
from dinoforge.data.sources.paths import joined, read, stamp_of, storage
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import Disk, on_opening

_HELD = 256 << 20
"""Bytes of decoded columns that a process keeps; a larger one is kept alone."""
_MANIFEST, _HUB = b"dinoforge", b"huggingface"


class Parquet(Source):
    """One file. Column ``image`` holds bytes, a struct with ``bytes`` or ``path``, or paths relative to the file.

    Only the group of rows that a row lies in is read, and only the column that is asked for.

    Args:
        name: What the file is called in the ids of rows that have none of their own.

    Raises:
        DataError: No Parquet file, none with images, or with labels or groups that are fractions.
        ConfigError: A column that was asked for is not there.
    """

    def __init__(self, address: str, name: str, options: Options) -> None:
        options.only(*COLUMNS, *ACCESS, of="a Parquet file")
        self.address, self._place, self._options = shown(address), address, options
        with on_opening(address):
            self._stamp = storage(address, options).stamp(address)
        try:
            schema, facts = self._file.schema_arrow, self._file.metadata
            if _MANIFEST in (schema.metadata or {}):
                raise DataError(f"{self.address} is a manifest: give its own path, on this machine.")
            refuse_doubles(schema.names, self.address)
            self._held = _pictures(schema, address, options)
            if not facts.num_rows:
                raise DataError(f"{self.address} has no row.")
            self._starts = np.cumsum([0, *(facts.row_group(group).num_rows for group in range(facts.num_row_groups))])
            images = schema.field(self._held["image"]).type
            plain = self._file.read(columns=_plain_columns(schema, self._held, images))
            self._elsewhere = _is_text(images)
            self._paths = (
                plain[self._held["image"]] if self._elsewhere else _paths_beside(self._file, self._held["image"])
            )
            names = unique_names(texts(self._paths)) if self._elsewhere else None
            known = known_columns(plain, self.address, options=options, names=names, called=name)
        except (OSError, pa.ArrowException, UnicodeError) as error:
            raise DataError(f"{self.address} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        folders = by_folder(names.tolist()) if names is not None and "label" not in known.columns else {}
        self.by_name = known.by_name | ({"label"} & folders.keys())
        columns = {**folders, **known.columns}
        self.columns = with_split(columns | _class_names(schema, options, columns), name)

    @cached_property
    def _file(self) -> Any:
        """This process's view of the file."""
        where = storage(self._place, self._options)
        if isinstance(where, Disk):
            return pq.ParquetFile(self._place, memory_map=True)
        return pq.ParquetFile(pa.PythonFile(where.opened(self._place), mode="r"))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def encoded(self, row: int) -> bytes:
        """The bytes of the row's image, or of the file that it names."""
        value = self._value("image", row)
        if not value:
            raise Broken("the row holds no image bytes")
        return value

    def stamp(self, row: int) -> str | None:
        """That of the file that the row names, that of this whole file where it holds the image itself, or may hold it."""
        size, changed = self._stamp
        path = None if self._paths is None else self._paths[row].as_py()
        named = stamp_of(self._folder, path) if path else None
        if path and (self._elsewhere or (named is None and not self._on_disk(path))):
            return named
        return f"{size}:{changed}:{row}" + (f":{named}" if path else "") if changed else None

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """``mask`` or ``depth`` of the row, see ``ground_truth``."""
        value = self._value(name, row) if name in self._held else None
        return ground_truth(value, name) if value else None

    def _value(self, name: str, row: int) -> bytes | None:
        """The bytes in a column of pictures, or behind its path."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        column = _RECENT.column(self, group, self._held[name])
        value = column[row - int(self._starts[group])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return read(self._folder, value, self._options)
        return None if value is None else bytes(value)

    @property
    def _folder(self) -> str:
        """What paths in it are relative to."""
        return self._place.partition("?")[0].rpartition("/")[0]

    def _on_disk(self, path: str) -> bool:
        """Whether a path in it is one of this machine's disk."""
        try:
            return not scheme_of(joined(self._folder, path))
        except Broken:
            return False

    def column(self, group: int, name: str) -> Any:
        """A column of one group of rows.

        Raises:
            Broken: The file is damaged there, or gone.
        """
        try:
            return self._file.read_row_group(group, columns=[name])[name]
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, Broken):
                raise
            raise Broken(f"the Parquet file cannot be read there: {str(error).splitlines()[0]}") from None

    @property
    def place(self) -> tuple[str, int, str]:
        """What tells this file, as it was when it was opened, from any other."""
        return self._place, *self._stamp


class _Recent:
    """The columns of groups of rows that were read last, of all files together, up to so many bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a forked process too: there the lock may be held by a thread that it does not have."""
        self._lock, self._held, self._bytes = threading.Lock(), OrderedDict[Any, Any](), 0

    def column(self, source: Parquet, group: int, name: str) -> Any:
        """A column of one group of a file's rows."""
        key = (source.place, group, name)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            column = source.column(group, name)
            self._held[key] = column
            self._bytes += column.nbytes
            while self._bytes > self._size and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
            return column


_RECENT = _Recent(_HELD)
os.register_at_fork(after_in_child=_RECENT.forget)


def _pictures(schema: Any, address: str, options: Options) -> dict[str, str]:
    """Which columns hold the image, the mask and the depth map.

    Raises:
        DataError: None holds images.
        ConfigError: One that was asked for is not there.
    """
    image = options.image or "image"
    if image not in schema.names:
        image = path_column(schema, address, options)
    kind = schema.field(image).type
    if not holds_pictures(kind):
        raise DataError(
            f"{shown(address)} has no image bytes in its column {image!r} but {kind}; it takes bytes, "
            "a struct with bytes or path, or paths."
        )
    found = {"image": image}
    for truth, asked in options.truths.items():
        if asked is not None and asked not in schema.names:
            raise ConfigError(f"{shown(address)} has no column {asked!r}.{closest(asked, schema.names)}")
        column = asked or truth
        kind = schema.field(column).type if column in schema.names else pa.null()
        if holds_pictures(kind):
            found[truth] = column
        elif asked is not None:
            raise DataError(f"{shown(address)} has no pictures in its column {asked!r} but {kind}.")
    return found


def _plain_columns(schema: Any, held: Mapping[str, str], images: Any) -> list[str]:
    """The columns that are read at once: all but pictures; the paths of images, for they are names."""
    pictures = {*held.values()} - ({held["image"]} if _is_text(images) else set())
    return [column for column in schema.names if column not in pictures and is_plain(schema.field(column).type)]


def _paths_beside(file: Any, image: str) -> Any:
    """The paths in a column of structs, where some rows may have no bytes and lie in the file that is named; else None."""
    facts = file.metadata
    columns = [facts.schema.column(number).path for number in range(facts.num_columns)]
    if f"{image}.path" not in columns:
        return None
    if f"{image}.bytes" in columns:
        number = columns.index(f"{image}.bytes")
        known = [facts.row_group(group).column(number).statistics for group in range(facts.num_row_groups)]
        if all(one is not None and one.has_null_count and not one.null_count for one in known):
            return None
    return pc.struct_field(file.read(columns=[f"{image}.path"])[image], "path")


def holds_pictures(kind: Any) -> bool:
    """Whether a column type (pyarrow) is bytes, a struct with bytes or a path in it, or paths."""
    return _is_text(kind) or _is_encoded(kind)


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_encoded(kind: Any) -> bool:
    """Whether a column type is bytes, or a struct with bytes or a path in it."""
    if pa.types.is_struct(kind):
        fields = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
        return _is_encoded(fields.get("bytes", pa.null())) or _is_text(fields.get("path", pa.null()))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: Any, options: Options, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of numbered classes, as the hub writes them into its files."""
    try:
        features = json.loads((schema.metadata or {})[_HUB])["info"]["features"]
        names = features[options.label or "label"]["names"]
    except (KeyError, TypeError, ValueError):
        return {}
    return named_classes(columns, names)


def named_classes(columns: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
    """A column ``label_name`` from numbers and the list of the names; none where there is one already."""
    labels = columns.get("label")
    if labels is None or "label_name" in columns or labels.max(initial=-1) >= len(names):
        return {}
    return {"label_name": np.asarray([*names, ""], dtype=np.str_)[np.where(labels < 0, len(names), labels)]}
