"""Features on their way: finished shards in a folder beside the one they will be in, so that no start computes them twice.

Beside ``features`` it is ``.features.embed``: ``about.json`` says of what they are, ``00000.f32`` (``.f16`` where numbers
have 16 bits) holds the rows of the first shard and ``00000.json``, written after it, says that they are whole, which shape a
row has and which images were broken.
A shard is so many images of the source, in order; broken ones among them have no row.

Axes: B images at once, N rows, D channels.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from dinoforge.base.config import differences
from dinoforge.base.errors import RunError
from dinoforge.base.files import clear_leftovers, write_atomic, write_json

Some: TypeAlias = tuple[Int[np.ndarray, " B"], Float[np.ndarray, "B *shape"]]
"""Rows of a source and what was computed of them."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What is known of a finished shard."""

    shape: tuple[int, ...]
    """Of one image's features."""
    broken: tuple[tuple[int, str], ...]
    """Rows of the source that have no features, each with the reason."""


class Unfinished:
    """The folder of finished shards. Whoever holds it has locked it.

    Args:
        about: What determines the features; shards of anything else are refused.
        images: Rows of the source.
        rows: Of them in a shard.
        half: Whether numbers are kept in 16 bits, else in 32.

    Raises:
        RunError: Shards are there that are of something else, or the folder cannot be written.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], *, images: int, rows: int, half: bool = False) -> None:
        self.folder, self._images, self._rows = folder, images, rows
        self.numbers = np.dtype("<f2" if half else "<f4")
        clear_leftovers(folder, "*")
        about = json.loads(json.dumps({**about, "images": images, "shard": rows}))
        was = noted(folder)
        if was != about and any(folder.glob("*.f[13][62]")):
            lines = differences(was or {}, about)
            raise RunError(
                f"{folder} holds finished shards of other features. They differ in: {'; '.join(lines[:4])}"
                f"{' …' if len(lines) > 4 else ''}. Give the settings that they were computed with, or remove {folder} to "
                "start anew."
            )
        if was != about:
            write_json(folder / "about.json", about)
        self.shards: dict[int, Shard] = {}
        for number in range(len(self)):
            found = self._read(number)
            if found is not None:
                self.shards[number] = found

    def __len__(self) -> int:
        """Shards in all, finished or not."""
        return math.ceil(self._images / self._rows)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        return [number for number in range(len(self)) if number not in self.shards]

    def span(self, number: int) -> range:
        """The rows of the source that a shard is of."""
        return range(number * self._rows, min((number + 1) * self._rows, self._images))

    def write(self, computed: Iterable[Some], reasons: deque[str]) -> None:
        """Write every missing shard, each as soon as it is whole.

        Args:
            computed: Features of all usable rows of the missing shards, in order; a part lies in one shard.
            reasons: Gets the reason of every broken row, in order, before ``computed`` gives a later row.

        Raises:
            RunError: The disk is full; what is finished stays.
        """
        missing = deque(self.missing())
        for number, parts in groupby(computed, key=lambda part: int(part[0][0]) // self._rows):
            while missing[0] != number:  # passed over: not one of its images is usable
                self._write(missing.popleft(), iter(()), reasons)
            self._write(missing.popleft(), parts, reasons)
        for empty in missing:
            self._write(empty, iter(()), reasons)

    def usable(self, number: int) -> Int[np.ndarray, " N"]:
        """The rows of the source that a finished shard has features of."""
        span = self.span(number)
        broken = np.asarray([row for row, _ in self.shards[number].broken], np.int64)
        return np.setdiff1d(np.arange(span.start, span.stop), broken, assume_unique=True)

    def broken(self) -> list[tuple[int, str]]:
        """All rows that have no features, each with the reason."""
        return [row for number in sorted(self.shards) for row in self.shards[number].broken]

    def copy(self, file: BinaryIO) -> str:
        """Write the features of all shards one behind the other, little-endian; 16 hexadecimal digits of what was written."""
        digest = hashlib.sha256()
        for number in range(len(self)):
            with self._values(number).open("rb") as values:
                while part := values.read(1 << 24):
                    file.write(part)
                    digest.update(part)
        return digest.hexdigest()[:16]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, number: int, parts: Iterator[Some], reasons: deque[str]) -> None:
        span, usable = self.span(number), set[int]()
        shape: tuple[int, ...] = ()

        def stream(file: BinaryIO) -> None:
            nonlocal shape
            for rows, values in parts:
                assert rows[-1] in span, f"rows {rows[0]} to {rows[-1]} lie in more than one shard"
                usable.update(rows.tolist())
                shape = values.shape[1:]
                kept = in_range(values) if self.numbers.itemsize == 2 else values
                file.write(np.ascontiguousarray(kept, dtype=self.numbers).data)

        write_atomic(self._values(number), stream)
        # Later images may have been found broken too by now; the first reasons are those of this shard.
        broken = tuple((row, reasons.popleft()) for row in span if row not in usable)
        write_json(self._note(number), {"shape": shape, "broken": broken})
        self.shards[number] = Shard(shape, broken)

    def _read(self, number: int) -> Shard | None:
        """What is known of a shard, None where it is not whole."""
        try:
            note = json.loads(self._note(number).read_text(encoding="utf-8"))
            found = Shard(tuple(note["shape"]), tuple((int(row), str(reason)) for row, reason in note["broken"]))
            size = self._values(number).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        rows = len(self.span(number)) - len(found.broken)
        return found if size == self.numbers.itemsize * rows * math.prod(found.shape) else None

    def _values(self, number: int) -> Path:
        return self.folder / f"{number:05}.f{8 * self.numbers.itemsize}"

    def _note(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"


def in_range(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Numbers that 16 bits can hold: those beyond are the largest one, and what is not finite is 0."""
    most = float(np.finfo(np.float16).max)
    found: np.ndarray = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(-most, most)
    return found


def noted(folder: Path) -> dict[str, Any] | None:
    """Of what the shards in a folder are, None where that is not known."""
    try:
        found = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
