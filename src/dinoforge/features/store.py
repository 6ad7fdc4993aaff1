"""The noun ``Features``: rows in a memory-mapped file, their ids beside them, and whose features they are.

A folder with ``features.npy`` (one array, any NumPy reads it), ``ids.parquet`` (id and label of every row) and
``features.json`` (kind, width, digest, fingerprints of backbone and data); what was set aside is in ``quarantine.jsonl``.

Axes: N rows, D channels, H by W patches.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinoforge.base.errors import DataError
from dinoforge.base.files import explained, new_folder, write_json, write_lines
from dinoforge.features.unfinished import Unfinished

TOKENS = ("image", "patches")
"""What may be stored: one vector an image, or its grid of patches."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Features on disk."""

    values: np.ndarray
    """``[N D]`` for image tokens, ``[N H W D]`` for patches; mapped, not loaded."""
    ids: np.ndarray
    facts: dict[str, Any]


FILES = frozenset({"features.npy", "ids.parquet", "features.json", "quarantine.jsonl"})
"""What a folder of features holds."""


def write_features(
    path: Path, shards: Unfinished, *, columns: Mapping[str, np.ndarray], facts: Mapping[str, Any],
    set_aside: Iterable[Mapping[str, str]] = (),
) -> int:  # fmt: skip
    """Make finished shards the folder of features, whole or not at all, and remove them; the number of rows.

    Args:
        columns: What the source knows of its rows; goes to ``ids.parquet``.
        facts: Whose features they are; goes to ``features.json``.
        set_aside: What could not be used, each with ``id`` and ``reason``; goes to ``quarantine.jsonl``, if there is any.

    Raises:
        RunError: The folder cannot be written; the shards stay.
    """
    rows = np.concatenate([shards.usable(number) for number in range(len(shards))])
    shape = next(found.shape for found in shards.shards.values() if found.shape)
    with new_folder(path) as folder, explained(path):
        with (folder / "features.npy").open("wb") as file:
            header = {"descr": shards.numbers.str, "fortran_order": False, "shape": (len(rows), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            digest = shards.copy(file)
        table = {name: pa.array(column[rows].tolist()) for name, column in columns.items()}
        pq.write_table(pa.table(table), folder / "ids.parquet")
        write_json(folder / "features.json", {"rows": len(rows), "shape": list(shape), "digest": digest, **facts})
        aside = [dict(line) for line in set_aside]
        if aside:
            write_lines(folder / "quarantine.jsonl", aside)
    shards.remove()
    return len(rows)


def _mapped(path: Path, mode: Literal["r", "c"]) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode=mode)  # nothing that is written reaches the disk
    except OSError as error:
        if mode == "r" or error.errno != errno.ENOMEM:
            raise
        return _mapped(path, "r")
    return found


def read_features(path: Path, *, mode: Literal["r", "c"] = "c") -> Stored:
    """Features that ``write_features`` wrote.

    Args:
        mode: How they are mapped: ``c`` may be written to in memory, as torch wants it, unless they are larger than the system
            gives memory for; ``r`` may only be read.

    Raises:
        DataError: No such folder, or not one of features.
    """
    try:
        facts = json.loads((path / "features.json").read_text(encoding="utf-8"))
        values = _mapped(path / "features.npy", mode)
        ids = np.asarray(pq.read_table(path / "ids.parquet", columns=["id"])["id"].to_pylist())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} holds no features: {str(error).splitlines()[0]}. `dinoforge embed` writes some."
        ) from None
    return Stored(values, ids, facts)
