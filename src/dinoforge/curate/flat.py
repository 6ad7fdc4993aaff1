"""The columns of all shards of a source, a file each: mapped, so that who asks for some rows holds these alone.

A shard is what is made, lost and made again; its arrays of megabytes would come to the memory of the whole pool if they were
joined there. Here they are copied shard after shard into files as long as the pool. These are whole or absent together, under
a key of what they were made of.

Axes: N rows of a source.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped

from dinoforge.base.files import explained, new_folder, write_atomic

_KEY = "key"


def column_file(folder: Path, name: str) -> Path:
    """Where a column lies."""
    return folder / f"{name}.npy"


def read_columns(folder: Path, names: Iterable[str], *, key: str | None = None) -> dict[str, np.ndarray] | None:
    """Columns that ``write_columns`` wrote, mapped; None where they are not there, or under another key.

    Args:
        key: None takes them whatever it is.
    """
    try:
        if key is not None and (folder / _KEY).read_text(encoding="utf-8") != key:
            return None
        return {
            name: np.asarray(np.load(column_file(folder, name), mmap_mode="r", allow_pickle=False)) for name in names
        }
    except (OSError, ValueError, EOFError):
        return None


def forget_columns(folder: Path) -> None:
    """Take columns for those of nothing, before what they were made of is made anew under the same key."""
    with explained(folder):
        (folder / _KEY).unlink(missing_ok=True)


def write_columns(
    folder: Path, kinds: Mapping[str, tuple[tuple[int, ...], Any]], rows: int, *,
    parts: Iterable[Mapping[str, np.ndarray]], key: str,
) -> None:  # fmt: skip
    """Write columns part after part, all of them or none.

    Args:
        kinds: By name, the axes behind the rows and the kind of number.
        parts: Of consecutive rows, ``rows`` in all.

    Raises:
        RunError: They cannot be written.
    """
    with new_folder(folder) as new, explained(folder), ExitStack() as stack:
        # Written, not mapped to be written: where a disk is full, that would end the process without a word.
        files = {name: stack.enter_context(column_file(new, name).open("wb")) for name in kinds}
        for name, (axes, kind) in kinds.items():
            _head(files[name], (rows, *axes), kind)
        for part in parts:
            for name, file in files.items():
                _append(file, part[name], kinds[name][1])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        (new / _KEY).write_text(key, encoding="utf-8")


def write_array(path: Path, shape: tuple[int, ...], kind: Any, *, parts: Iterable[np.ndarray]) -> None:
    """Write a ``.npy`` file part after part, whole or not at all.

    Raises:
        RunError: It cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        _head(file, shape, kind)
        for part in parts:
            _append(file, part, kind)

    write_atomic(path, write)


def _head(file: IO[bytes], shape: tuple[int, ...], kind: Any) -> None:
    about = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def _append(file: IO[bytes], rows: np.ndarray, kind: Any) -> None:
    # The array's own memory; its ``tofile`` would not say why it fails, its ``tobytes`` would be a copy.
    file.write(np.ascontiguousarray(rows, dtype=kind).reshape(-1).view(np.uint8).data)


def spilled(
    folder: Path, shape: tuple[int, ...], kind: Any, *, parts: Iterable[np.ndarray]
) -> Shaped[np.ndarray, "N ..."]:
    """An array of this process that lies on the disk, in a file without a name that goes with it.

    Args:
        folder: On that disk.
        parts: Consecutive rows.

    Raises:
        RunError: It cannot be written.
    """
    if not shape[0]:
        return np.zeros(shape, kind)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in parts:
                _append(file, part, kind)
            file.flush()
            os.fsync(file.fileno())  # some file systems tell only now that the disk is full
            return np.asarray(np.memmap(file, dtype=kind, mode="r", shape=shape))
