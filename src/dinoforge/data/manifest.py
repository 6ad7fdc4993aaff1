"""The noun ``Manifest``: one row an image, with where it came from and why it is here; one Parquet file.

Axes: N rows of a manifest, n of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from dinoforge.base.errors import DataError
from dinoforge.base.files import write_atomic

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("uri", pa.string()),
        ("stamp", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int32()),
        ("bytes", pa.int64()),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("split", pa.string()),
        ("group", pa.int64()),
        ("group_name", pa.string()),
        ("frame", pa.int64()),
        ("clip", pa.string()),
        ("variant", pa.string()),
        ("pose", pa.string()),
        ("weight", pa.float64()),
        ("source", pa.string()),
        ("copy_of", pa.string()),
        ("reason", pa.string()),
        ("similarity", pa.float32()),
        ("cluster", pa.int64()),
        ("seed", pa.string()),
    ]
)
"""``uri`` is the image's key in ``source`` (``keys``), ``stamp`` what that source said of it when it was read
(``Source.stamp``), ``copy_of`` the id of the first row with the same ``sha256``. ``reason`` to ``seed`` say why an image was
chosen; a scan leaves them empty. What is not known is null."""

KNOWN = ("label", "label_name", "split", "group", "group_name", "frame", "clip", "variant", "pose")
"""Columns that a scan takes over from the source, and a manifest gives as a source."""

BOXES, BLUR = "boxes", "blur"
"""Columns of a curated manifest: places that a filter found in an image (left, top, right, bottom, left, … in shares of its
sides), and whether they are blurred whenever the image is read as one of this manifest."""

ROWS_AT_ONCE = 131_072
"""Rows of a row group: what is written and read in one go."""

_KEY = b"dinoforge"
_LONGEST = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """N images. The table stays columnar: a million rows are some hundred megabytes, as dictionaries gigabytes."""

    table: Any
    """A pyarrow table with all columns of ``SCHEMA``, then whatever else the file holds."""
    made: Mapping[str, Any]
    """How it was made, from what, and what was left out why (``rejected``: ``id``, ``reason``)."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """One column ``[N]`` in the manner of a source: -1, NaN or an empty text where nothing is known."""
        return plain(self.table[name])

    def holds(self, name: str) -> bool:
        """Whether a column is known of any row."""
        return name in self.table.column_names and self.table[name].null_count < len(self)

    def select(self, rows: Int[np.ndarray, " n"]) -> Manifest:
        """The given rows in the given order."""
        return Manifest(self.table.take(pa.array(rows)), self.made)

    def replaced(self, name: str, column: Any) -> Manifest:
        """The same with another column in place of that one; a text or None is that of every row."""
        kind = SCHEMA.field(name).type
        if column is None or isinstance(column, str):
            column = pa.repeat(pa.scalar(column, kind), len(self))
        place = self.table.schema.get_field_index(name)
        return Manifest(self.table.set_column(place, pa.field(name, kind), column), self.made)

    def rows(self) -> list[dict[str, Any]]:
        """Every row as a dictionary, for a look at a few."""
        return list(self.table.to_pylist())


def plain(column: Any) -> np.ndarray:
    """A pyarrow column as one of a source: int64, float64, or text; -1, NaN or empty for null."""
    if pa.types.is_integer(column.type):
        return np.asarray(pc.fill_null(column.cast(pa.int64()), -1).to_numpy())
    if pa.types.is_floating(column.type):
        return np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy())
    return np.asarray(pc.fill_null(column, "").to_pylist(), dtype=np.str_)


def texts(values: np.ndarray) -> Any:
    """Texts as a pyarrow array; null for one that is no Unicode text, as names of files may be (PEP 383)."""
    found = values.tolist()
    try:
        return pa.array(found, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([name if _encodes(name) else None for name in found], pa.large_string())


def _encodes(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def keys(ids: np.ndarray) -> Any:
    """What stands in ``uri`` for the rows of a source: their ids, ``id#2`` for the second row of the same id and so on.

    As pyarrow texts; null for an id that is no Unicode text.
    """
    found = texts(ids)
    again = np.flatnonzero(firsts(found) != np.arange(len(found)))
    if not len(again):
        return found
    count: dict[str | None, int] = {}
    names = found.to_pylist()
    for row in again.tolist():
        count[names[row]] = count.get(names[row], 1) + 1
        names[row] = None if names[row] is None else f"{names[row]}#{count[names[row]]}"
    return pa.array(names, pa.large_string())


def firsts(column: Any) -> Int[np.ndarray, " N"]:
    """For every row of a pyarrow column, the first row with the same value; rows that are null are equal to each other."""
    codes = pc.dictionary_encode(column, null_encoding="encode")
    codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    numbers = codes.indices.to_numpy(zero_copy_only=False)
    # Numbers are given in the order of appearance, so a value's first row is where the highest number grows.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(numbers), prepend=-1))
    return first[numbers].astype(np.int64)


def places(manifest: Manifest) -> dict[int, Float32[np.ndarray, "b 4"]]:
    """By row that has some: its boxes that are to be blurred.

    Raises:
        DataError: They are no boxes.
    """
    if BOXES not in manifest.table.column_names or BLUR not in manifest.table.column_names:
        return {}
    blur = np.asarray(pc.fill_null(manifest.table[BLUR], False).to_numpy())
    found = {}
    for row in np.flatnonzero(blur).tolist():
        numbers = np.asarray(manifest.table[BOXES][row].as_py() or [], dtype=np.float32)
        if len(numbers) % 4 or not ((numbers >= 0) & (numbers <= 1)).all():
            raise DataError(
                f"a damaged manifest: row {row} has boxes {numbers.tolist()[:8]}, which takes four shares each"
            )
        if len(numbers):
            found[row] = numbers.reshape(-1, 4)
    return found


def write_manifest(path: Path, tables: Iterable[Any], *, made: Mapping[str, Any]) -> int:
    """Write a manifest atomically, table after table; how many rows it has.

    Args:
        tables: pyarrow tables of one schema that begins with ``SCHEMA``.
        made: See ``Manifest``.
    """
    about = {_KEY: json.dumps(dict(made)).encode()}
    rows = 0

    def write(file: Any) -> None:
        nonlocal rows
        writer = None
        try:
            for table in tables:
                writer = writer or pq.ParquetWriter(file, table.schema.with_metadata(about), compression="zstd")
                writer.write_table(table.replace_schema_metadata(about), row_group_size=ROWS_AT_ONCE)
                rows += table.num_rows
            writer = writer or pq.ParquetWriter(file, SCHEMA.with_metadata(about), compression="zstd")
        finally:
            if writer is not None:
                writer.close()

    write_atomic(path, write)
    return rows


def is_manifest(path: Path) -> bool:
    """Whether a Parquet file was written by ``write_manifest``; False for anything else."""
    try:
        with _opened(path) as file:
            return _KEY in (file.schema_arrow.metadata or {})
    except (OSError, pa.ArrowInvalid, UnicodeError):
        return False


def read_made(path: Path) -> dict[str, Any]:
    """How a manifest was made, without its rows.

    Raises:
        DataError: No such file, or one that is no manifest.
    """
    try:
        with _opened(path) as file:
            return _made(path, file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as a manifest: {str(error).splitlines()[0]}") from None


def _made(path: Path, file: Any) -> dict[str, Any]:
    text = (file.schema_arrow.metadata or {}).get(_KEY)
    if text is None:
        raise DataError(f"{path} is a Parquet file but no manifest; `dinoforge scan` writes one.")
    try:
        return dict(json.loads(text))
    except ValueError:
        raise DataError(f"{path} is a damaged manifest: it does not say how it was made.") from None


def read_manifest(path: Path, *, columns: Sequence[str] | None = None) -> Manifest:
    """A manifest, also one of an earlier version: columns that it lacks are null.

    Args:
        columns: Read only these; the others are null.

    Raises:
        DataError: No such file, or one that is no manifest.
    """
    try:
        with _opened(path) as file:
            made = _made(path, file)
            table = file.read(None if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as a manifest: {str(error).splitlines()[0]}") from None
    held = {name: table[name] for name in table.column_names}
    try:
        found = {
            field.name: held.pop(field.name).cast(field.type)
            if field.name in held
            else pa.nulls(table.num_rows, field.type)
            for field in SCHEMA
        }
        return Manifest(pa.table({**found, **held}), made)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path} is a damaged manifest: {str(error).splitlines()[0]}") from None


def _opened(path: Path) -> Any:
    # What was rejected stands in the file's footer, and may be longer than what Parquet readers take from strangers.
    return pq.ParquetFile(path, thrift_string_size_limit=_LONGEST)
