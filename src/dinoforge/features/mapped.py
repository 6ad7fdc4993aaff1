"""Rows that lie in files, or are some of others, as if they were one array: read where they are asked for.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import DataError
from dinoforge.features.compressed import Rows
from dinoforge.features.exact import ROWS_AT_ONCE


class UnreadError(DataError, OSError):
    """A file that this machine cannot read; another one, or a later try, may."""


class Stacked:
    """Several ``.npy`` files, ``[n …]`` each, as if they were one array.

    Raises:
        DataError: A file that is none, or whose rows are others.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        # Looked at and let go: a mapped file is an open one, and of these a process may have a thousand.
        heads = [(array.shape, array.dtype) for array in map(mapped, self.paths)]
        self.starts = np.cumsum([0, *(shape[0] for shape, _ in heads)])
        self._row = heads[0][0][1:] if heads else (0,)
        self.dtype = np.result_type(*(kind for _, kind in heads)) if heads else np.dtype(np.float32)
        self.shape = (int(self.starts[-1]), *self._row)
        for path, (shape, _) in zip(self.paths, heads, strict=True):
            if shape[1:] != self._row:
                told = [", ".join(map(str, row)) for row in (shape[1:], self._row)]
                raise DataError(f"{path} holds vectors of {told[0]} channels, {self.paths[0]} of {told[1]}.")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        found = np.empty((len(numbers), *self._row), self.dtype)
        shard = np.searchsorted(self.starts, numbers, side="right") - 1
        for place in np.unique(shard).tolist():
            some = shard == place
            found[some] = mapped(self.paths[place])[numbers[some] - self.starts[place]]
        return found

    @property
    def key(self) -> str:
        """Of the files: names, sizes and times of the last change."""
        stats = [(str(path.resolve()), path.stat()) for path in self.paths]
        return fingerprint([[path, found.st_size, found.st_mtime_ns] for path, found in stats])


def mapped(path: Path) -> np.ndarray:
    """A ``.npy`` file.

    Raises:
        DataError: It is none.
        UnreadError: It cannot be read.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UnreadError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no .npy file of vectors: {error}.") from None
    return array


class Picked:
    """Some rows of others, in the order of their numbers.

    Args:
        make: What becomes of them, as many numbers each; a function of every row alone.
    """

    def __init__(
        self, whole: Rows, numbers: Int[np.ndarray, " N"], make: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self._whole, self._numbers, self._make = whole, numbers, make
        self.shape = (len(numbers), *whole.shape[1:])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: Any) -> Any:
        found = self._whole[self._numbers[rows]]
        return found if self._make is None else self._make(found)


def blocks(rows: Rows) -> Iterator[np.ndarray]:
    """All rows, 16,384 at a time: as searches take them, for products of matrices of other shapes are rounded otherwise."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
