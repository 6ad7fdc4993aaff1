"""Parquet files with the bytes of an image a row (what the Hugging Face hub and most exports hold)."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinoforge.base.errors import ConfigError, DataError, closest
from dinoforge.data.decode import Broken, decode
from dinoforge.data.sources.source import Source, numbered

_HELD_BACK = {"image", "mask", "depth"}  # pictures are read when asked for, all other columns at once
_TEXTS = (pa.string(), pa.large_string())


class Parquet(Source):
    """One file. Column ``image`` holds bytes (or a struct with ``bytes``), the others what is known of a row.

    Args:
        label: Column that holds the labels.

    Raises:
        DataError: No Parquet file, or one without image bytes, or with labels or groups that are fractions.
        ConfigError: No such label column.
    """

    def __init__(self, path: Path, *, name: str | None = None, label: str = "label") -> None:
        self.address, self._path = str(path), path
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
        if "image" not in schema.names:
            raise DataError(f"{path} has no column 'image' with image bytes; it has {', '.join(schema.names)}.")
        held = schema.field("image").type
        if not _holds_bytes(held):
            paths = "; paths and addresses are not read yet" if held in _TEXTS else ""
            raise DataError(f"{path} has no image bytes in its column 'image' but {held}{paths}.")
        if label != "label" and label not in schema.names:
            raise ConfigError(f"{path} has no column {label!r}.{closest(label, schema.names)}")
        plain = [column for column in schema.names if column not in _HELD_BACK]
        table = pq.read_table(path, columns=plain)
        self.columns, self.by_name = _columns(table, name or path.name, rows=_rows(path), label=label)

    def encoded(self, row: int) -> bytes:
        """The bytes of column ``image``."""
        value = _bytes(self._pictures["image"][row].as_py())
        if not value:
            raise Broken("the row holds no image bytes")
        return value

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """Column ``mask`` or ``depth``, decoded."""
        if name not in self._pictures:
            return None
        value = _bytes(self._pictures[name][row].as_py())
        return None if value is None else decode(value)

    @cached_property
    def _pictures(self) -> dict[str, Any]:
        """The columns of pictures, mapped from the file where it is not compressed."""
        names = [name for name in pq.read_schema(self._path).names if name in _HELD_BACK]
        table = pq.read_table(self._path, columns=names, memory_map=True)
        return {name: table[name] for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pictures"}


def _holds_bytes(held: Any) -> bool:
    """Whether a column type is bytes, or a struct with bytes in it."""
    if pa.types.is_struct(held):
        index = held.get_field_index("bytes")
        return index >= 0 and _holds_bytes(held.field(index).type)
    return bool(pa.types.is_binary(held) or pa.types.is_large_binary(held))


def _bytes(value: Any) -> bytes | None:
    """The bytes of a value of such a column."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return None if value is None else bytes(value)


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _columns(
    table: Any, name: str, *, rows: int, label: str
) -> tuple[dict[str, np.ndarray], frozenset[str]]:  # fmt: skip
    """The plain columns under the names that every source uses, and which of them were texts that got numbers."""
    columns = {column: table[column] for column in table.column_names}
    found: dict[str, np.ndarray] = {}
    if "id" in columns:
        found["id"] = np.asarray(columns["id"].to_pylist(), dtype=np.str_)
    else:
        found["id"] = np.asarray([f"{name}:{row}" for row in range(rows)], dtype=np.str_)
    for column, own in (("label", label), ("group", "group")):
        if own in columns:
            found |= _classes(columns[own].to_pylist(), column, f"{name} column {own!r}")
    by_name = frozenset(column for column in ("label", "group") if f"{column}_name" in found)
    for text, own in (
        ("label_name", "label_name" if label == "label" else label.replace("label", "name")),
        ("split", "split"),
    ):
        if own in columns and text not in found:
            found[text] = np.asarray(
                ["" if value is None else value for value in columns[own].to_pylist()], dtype=np.str_
            )
    return found, by_name


def _classes(values: list[Any], column: str, where: str) -> dict[str, np.ndarray]:
    """Numbers as they are, -1 for unknown; texts are numbered in their sorted order and stay as names.

    Raises:
        DataError: Numbers that are not whole, or have no place in 64 bits.
    """
    values = [None if isinstance(value, float) and math.isnan(value) else value for value in values]
    known = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) for value in known):
        names = np.asarray(["" if value is None else str(value) for value in values], dtype=np.str_)
        return {column: numbered(names), f"{column}_name": names}
    odd = next((value for value in known if value != value // 1 or not -(2**63) <= value < 2**63), None)
    if odd is not None:
        raise DataError(f"{where} holds {odd}; it takes whole numbers or texts.")
    return {column: np.asarray([-1 if value is None else int(value) for value in values], dtype=np.int64)}
