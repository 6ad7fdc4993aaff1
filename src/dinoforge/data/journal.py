"""What a scan has found so far, on disk beside its output: after kill -9 the same command goes on from it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from dinoforge.base.errors import RunError
from dinoforge.base.files import explained, write_atomic

FACTS = pa.schema(
    [
        ("id", pa.large_string()),
        ("stamp", pa.large_string()),
        ("sha256", pa.large_string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int32()),
        ("bytes", pa.int64()),
        ("broken", pa.large_string()),
    ]
)
"""What reading one image found; ``broken`` is null where it is whole."""

_KEY = b"dinoforge scan"
_ROWS, _SECONDS = 4_096, 2.0


class Journal:
    """A file of ``FACTS`` that only grows. At most two seconds of work are not in it.

    Args:
        about: What the scan is of; ``same`` says whether the earlier starts were of the same.

    Raises:
        RunError: It cannot be written.
    """

    def __init__(self, path: Path, *, about: Mapping[str, Any]) -> None:
        self._path, self._schema = path, FACTS.with_metadata({_KEY: json.dumps(dict(about)).encode()})
        self._before, was = _read(path)
        self.same = was == dict(about)
        if (was or {}).get("data") != about.get("data"):
            self._before = self._before.slice(0, 0)  # files elsewhere may have the same names, sizes and times
        # Nothing can be added to a stream that was cut off: what is whole of it begins a new one.
        write_atomic(path, self._begin)
        with explained(path):
            self._file = path.open("ab", buffering=0)
        self._waiting: list[Sequence[Any]] = []
        self._added: list[Any] = []
        self._written = time.monotonic()

    def _begin(self, file: BinaryIO) -> None:
        file.write(self._schema.serialize())
        for batch in self._before.to_batches(max_chunksize=_ROWS):
            file.write(batch.serialize())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        """Keep what was noted, unless the disk refused it before."""
        with self._file:
            if not isinstance(error[1], RunError):
                self._flush()

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Note rows, each with the values of ``FACTS``.

        Raises:
            RunError: The disk is full.
        """
        self._waiting.extend(rows)
        if len(self._waiting) >= _ROWS or time.monotonic() - self._written > _SECONDS:
            self._flush()

    def found(self) -> Any:
        """All that is known, a table of ``FACTS``: of earlier starts, then of this one in the order of ``add``.

        Raises:
            RunError: The disk is full.
        """
        self._flush()
        return pa.concat_tables([self._before, pa.Table.from_batches(self._added, FACTS)])

    def _flush(self) -> None:
        self._written = time.monotonic()
        if not self._waiting:
            return
        values = zip(zip(*self._waiting, strict=True), FACTS, strict=True)
        batch = pa.record_batch([pa.array(column, field.type) for column, field in values], schema=FACTS)
        left = memoryview(batch.serialize())
        with explained(self._path):
            while left:
                left = left[self._file.write(left) :]
        self._added.append(batch)
        self._waiting = []


def _read(path: Path) -> tuple[Any, Any]:
    """The whole batches of a journal that may be absent, cut off or damaged, and what it is about."""
    batches: list[Any] = []
    about = None
    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as stream:
            if not stream.schema.equals(FACTS):
                raise pa.ArrowInvalid("a journal of another version")
            about = json.loads((stream.schema.metadata or {})[_KEY])
            for batch in stream:
                batches.append(batch.replace_schema_metadata(None))  # one by one: those before a tear count
    except (OSError, EOFError, ValueError, KeyError, MemoryError, pa.ArrowException):
        pass
    return pa.Table.from_batches(batches, FACTS), about
