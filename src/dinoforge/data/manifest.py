"""The noun ``Manifest``: one row an image, with where it came from and why it is here; one Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dinoforge.base.errors import DataError
from dinoforge.base.files import write_atomic

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int32()),
        ("bytes", pa.int64()),
        ("label", pa.int64()),
        ("label_name", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("similarity", pa.float32()),
        ("cluster", pa.int64()),
        ("seed", pa.string()),
    ]
)
"""``reason`` to ``seed`` say why an image was chosen; a scan leaves them empty."""

_KEY = b"dinoforge"


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]], *, made: Mapping[str, Any]) -> None:
    """Write a manifest atomically; ``made`` says how it was made, from what, and what was left out why."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    table = table.replace_schema_metadata({_KEY: json.dumps(dict(made)).encode()})
    write_atomic(path, lambda file: pq.write_table(table, file, compression="zstd"))


def is_manifest(path: Path) -> bool:
    """Whether a Parquet file was written by ``write_manifest``; False for anything else."""
    try:
        return _KEY in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def read_manifest(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of a manifest and how it was made.

    Raises:
        DataError: No such file, or one that is no manifest.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read as a manifest: {str(error).splitlines()[0]}") from None
    made = (table.schema.metadata or {}).get(_KEY)
    if made is None:
        raise DataError(f"{path} is a Parquet file but no manifest; `dinoforge scan` writes one.")
    return table.to_pylist(), json.loads(made)
