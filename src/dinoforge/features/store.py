"""The noun ``Features``: rows in a memory-mapped file, their ids beside them, and whose features they are.

A folder with ``features.npy`` (one array, any NumPy reads it), ``ids.parquet`` (id and label of every row) and
``features.json`` (kind, width, fingerprints of backbone and data).

Axes: N rows, D channels, H by W patches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinoforge.base.errors import DataError
from dinoforge.base.files import explained, new_folder, write_json
from dinoforge.features.extract import Part

TOKENS = ("image", "patches")
"""What may be stored: one vector an image, or its grid of patches."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Features on disk."""

    values: np.ndarray
    """``[N D]`` for image tokens, ``[N H W D]`` for patches; mapped, not loaded."""
    ids: np.ndarray
    facts: dict[str, Any]


def write_features(
    path: Path, parts: Iterator[Part], *, columns: Mapping[str, np.ndarray], tokens: str, facts: Mapping[str, Any]
) -> int:
    """Write features as they come, whole or not at all; the number of rows.

    Raises:
        RunError: The folder cannot be written.
    """
    kept: list[np.ndarray] = []
    with new_folder(path) as folder, explained(path):
        with (folder / "rows.raw").open("wb") as file:
            shape: tuple[int, ...] = ()
            for part in parts:
                values = getattr(part.features, tokens).numpy()
                shape = values.shape[1:]
                file.write(np.ascontiguousarray(values, dtype=np.float32).tobytes())
                kept.append(part.rows)
        rows = np.concatenate(kept)
        _finish(folder, (len(rows), *shape))
        table = {name: column[rows] for name, column in columns.items()}
        pq.write_table(
            pa.table({name: pa.array(values.tolist()) for name, values in table.items()}), folder / "ids.parquet"
        )
        about = {"tokens": tokens, "rows": len(rows), "shape": list(shape), **facts}
        write_json(folder / "features.json", about)
    return len(rows)


def _finish(folder: Path, shape: tuple[int, ...]) -> None:
    """Put NumPy's header before the rows: the number of rows is known only now."""
    with (folder / "features.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        with (folder / "rows.raw").open("rb") as rows:
            while chunk := rows.read(1 << 24):
                file.write(chunk)
    (folder / "rows.raw").unlink()


def read_features(path: Path) -> Stored:
    """Features that ``write_features`` wrote.

    Raises:
        DataError: No such folder, or not one of features.
    """
    try:
        facts = json.loads((path / "features.json").read_text(encoding="utf-8"))
        values = np.load(path / "features.npy", mmap_mode="r")
        ids = np.asarray(pq.read_table(path / "ids.parquet", columns=["id"])["id"].to_pylist())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} holds no features: {str(error).splitlines()[0]}. `dinoforge embed` writes some."
        ) from None
    return Stored(values, ids, facts)
