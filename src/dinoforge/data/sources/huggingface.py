"""Data sets of the library ``datasets``: saved to the disk, or on the Hugging Face hub. No code of a data set is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from dinoforge.base.errors import ConfigError, DataError, closest
from dinoforge.base.home import at_home
from dinoforge.data.decode import Broken
from dinoforge.data.ground_truth import TRUTHS, ground_truth
from dinoforge.data.sources.columns import SPLITS, known_columns
from dinoforge.data.sources.options import COLUMNS, Options, options_of
from dinoforge.data.sources.parquet import holds_pictures, named_classes
from dinoforge.data.sources.several import Several
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import Disk, ask_fence


class HuggingFace(Source):
    """One split. Pictures stay encoded; the rows are read from the library's memory-mapped files.

    Args:
        name: What the rows that have no ids of their own are called, before their number.

    Raises:
        DataError: No column holds images.
        ConfigError: A column that was asked for is not there.
    """

    def __init__(self, address: str, rows: Any, name: str, options: Options, split: str | None) -> None:
        import datasets

        self.address = address
        pictures = [column for column, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        for column in pictures:
            rows = rows.cast_column(column, datasets.Image(decode=False))
        self._held = {"image": _column(rows, options.image, ["image", "img", *pictures], address)}
        for truth in TRUTHS:
            if options.truths[truth] or truth in _with_pictures(rows):
                self._held[truth] = _column(rows, options.truths[truth], [truth], address)
        plain = [c for c in rows.column_names if c not in self._held.values() and c not in pictures]
        table = rows.select_columns(plain).with_format("arrow")[:] if plain else pa.table({"": pa.nulls(len(rows))})
        known = known_columns(table, address, options=options, called=name)
        self.by_name = known.by_name
        columns = dict(known.columns)
        kind = rows.features.get(options.label or "label")
        if isinstance(kind, datasets.ClassLabel):
            columns |= named_classes(columns, kind.names)
        if split is not None and "split" not in columns:
            columns["split"] = np.full(len(rows), split)
        self.columns, self._rows = columns, rows.select_columns(sorted({*self._held.values()}))

    def encoded(self, row: int) -> bytes:
        """The bytes of the row's image."""
        value = self._value("image", row)
        if not value:
            raise Broken("the row holds no image bytes")
        return value

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """``mask`` or ``depth`` of the row, see ``ground_truth``."""
        value = self._value(name, row) if name in self._held else None
        return ground_truth(value, name) if value else None

    def _value(self, name: str, row: int) -> bytes | None:
        value = self._rows[row][self._held[name]]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, bytes | str | None):
            raise Broken(f"the row holds {type(value).__name__}, not image bytes")
        return Disk().read(value) if isinstance(value, str) else value


def _column(rows: Any, asked: str | None, usual: list[str], address: str) -> str:
    """Which column holds pictures.

    Raises:
        ConfigError: The one that was asked for is not there.
        DataError: It holds something else, or none holds pictures.
    """
    names, fit = list(rows.column_names), _with_pictures(rows)
    if asked is not None and asked not in names:
        raise ConfigError(f"{address} has no column {asked!r}.{closest(asked, names)}")
    if asked is not None and asked not in fit:
        raise DataError(
            f"{address} has no pictures in its column {asked!r}; those that may: {', '.join(fit) or 'none'}."
        )
    found = asked or next((column for column in usual if column in fit), None)
    if found is None:
        raise DataError(f"{address} has no column with images; it has {', '.join(names)}. ?image= names one.")
    return found


def _with_pictures(rows: Any) -> list[str]:
    """The columns whose type may hold pictures."""
    return [column.name for column in rows.features.arrow_schema if holds_pictures(column.type)]


def open_huggingface(place: str, given: Mapping[str, str]) -> Source:
    """``hf:///data/set`` or ``hf://data/set`` as ``save_to_disk`` wrote it, else ``hf://user/name`` from the hub.

    Raises:
        ConfigError: The extra is not installed, or an option that has no effect.
        DataError: No such data set, or none with images.
    """
    options = options_of(given)
    try:
        import datasets
    except ImportError:
        raise ConfigError("hf:// needs the extra 'hf': pip install 'dinoforge[hf]'.") from None
    address, local = f"hf://{place}", at_home(place)
    on_disk = any((local / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))
    options.only(
        *COLUMNS,
        *(() if on_disk else ("config",)),
        of="a data set that was saved to the disk" if on_disk else "the hub",
    )
    if not on_disk and (local.exists() or place.startswith(("/", ".", "~"))):
        raise DataError(
            f"{address} is no data set that save_to_disk wrote; a folder of images has a path without hf://."
        )
    if on_disk:
        ask_fence(str(local))
    try:
        found = datasets.load_from_disk(str(local)) if on_disk else datasets.load_dataset(place, name=options.config)
    except Exception as error:  # the library and the hub's client raise errors of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{address} cannot be opened: {reason}") from None
    for rows in (found.values() if isinstance(found, Mapping) else [found]) if on_disk else ():
        for file in rows.cache_files:  # a list in the folder names them, and may name any
            ask_fence(file["filename"])
    name = place.rstrip("/").rpartition("/")[2]
    if not isinstance(found, Mapping):
        return HuggingFace(address, found, name, options, None)
    parts = [
        HuggingFace(f"{address}/{split}", rows, f"{name}/{split}", options, SPLITS.get(split.lower(), split))
        for split, rows in found.items() if len(rows)
    ]  # fmt: skip
    if not parts:
        raise DataError(f"{address} has no row.")
    return parts[0] if len(parts) == 1 else Several(address, parts)
