"""Parquet files with the bytes of an image a row (what the Hugging Face hub and most exports hold)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinoforge.base.errors import DataError, closest
from dinoforge.data.decode import Broken, decode
from dinoforge.data.sources.source import Source

_HELD_BACK = {"image", "mask", "depth"}  # pictures are read when asked for, all other columns at once


class Parquet(Source):
    """One file. Column ``image`` holds bytes (or a struct with ``bytes``), the others what is known of a row.

    Args:
        label: Column that holds the labels.

    Raises:
        DataError: No Parquet file, or one without an image or label column.
    """

    def __init__(self, path: Path, *, name: str | None = None, label: str = "label") -> None:
        self.address, self._path = str(path), path
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if "image" not in schema.names:
            raise DataError(f"{path} has no column 'image' with image bytes; it has {', '.join(schema.names)}.")
        if label != "label" and label not in schema.names:
            raise DataError(f"{path} has no column {label!r}.{closest(label, schema.names)}")
        plain = [column for column in schema.names if column not in _HELD_BACK]
        self.columns = _columns(pq.read_table(path, columns=plain), name or path.name, rows=_rows(path), label=label)

    def encoded(self, row: int) -> bytes:
        """The bytes of column ``image``."""
        value = self._pictures["image"][row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not value:
            raise Broken("the row holds no image bytes")
        return bytes(value)

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """Column ``mask`` or ``depth``, decoded."""
        if name not in self._pictures:
            return None
        value = self._pictures[name][row].as_py()
        return None if value is None else decode(bytes(value))

    @cached_property
    def _pictures(self) -> dict[str, Any]:
        """The columns of pictures, mapped from the file where it is not compressed."""
        names = [name for name in pq.read_schema(self._path).names if name in _HELD_BACK]
        table = pq.read_table(self._path, columns=names, memory_map=True)
        return {name: table[name] for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pictures"}


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _columns(table: Any, name: str, *, rows: int, label: str) -> Mapping[str, np.ndarray]:
    """The plain columns under the names that every source uses."""
    columns = {column: table[column] for column in table.column_names}
    found: dict[str, np.ndarray] = {}
    if "id" in columns:
        found["id"] = np.asarray(columns["id"].to_pylist(), dtype=np.str_)
    else:
        found["id"] = np.asarray([f"{name}:{row}" for row in range(rows)], dtype=np.str_)
    if label in columns:
        values = columns[label].to_pylist()
        if all(value is None or isinstance(value, int) for value in values):
            found["label"] = np.asarray([-1 if value is None else value for value in values], dtype=np.int64)
        else:
            names = sorted({str(value) for value in values if value is not None})
            number = {text: index for index, text in enumerate(names)}
            found["label"] = np.asarray([-1 if v is None else number[str(v)] for v in values], dtype=np.int64)
            found["label_name"] = np.asarray(["" if v is None else str(v) for v in values], dtype=np.str_)
    for text in ("label_name" if label == "label" else label.replace("label", "name"), "split"):
        if text in columns:
            found["label_name" if "name" in text else text] = np.asarray(
                ["" if value is None else value for value in columns[text].to_pylist()], dtype=np.str_
            )
    if "group" in columns:
        found["group"] = np.asarray([-1 if g is None else g for g in columns["group"].to_pylist()], dtype=np.int64)
    return found
