"""The interface of every source of images: rows that are known without decoding, pixels on demand.

Axes: N rows, Y by X pixels, C channels.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int, Num

from dinoforge.base.random import key
from dinoforge.data.decode import RGB, Picture, Reading, open_picture
from dinoforge.data.order import permute


class Source(ABC):
    """N images in a fixed order. Pickles to a worker process without its pixels.

    ``columns`` holds what is known of every row, each an array of length N. ``id`` is always there and names each row once:
    the source's own id, else the relative path. Where the source has them: ``label``, ``group``, ``frame`` (int64, -1 =
    unknown), ``label_name``, ``group_name``, ``split``, ``clip``, ``variant``, ``pose``, ``url`` (where an image comes from,
    if that is not its id), ``robots`` (marks of its owner) (texts, empty = unknown), and what else it knows.
    """

    address: str
    """The address as the user wrote it, without credentials and signed queries."""
    columns: Mapping[str, np.ndarray]
    rejected: Sequence[tuple[str, str]] = ()
    """Files that were found but are no images, each with the reason."""
    by_name: frozenset[str] = frozenset()
    """``label`` and ``group`` where their numbers only stand for the texts in ``label_name`` and ``group_name``."""
    mask_names: Sequence[str] = ()
    """What the classes in masks are called, in the order of their numbers, where the source says."""
    part_of: tuple[Source, np.ndarray] | None = None
    """The source whose pictures these are, and their rows there, where it is a selection."""

    def __len__(self) -> int:
        return len(self.columns["id"])

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """The bytes of the image file of a row (JPEG, PNG …).

        Raises:
            Broken: The row's file is gone or unreadable.
        """

    def picture(self, row: int) -> Picture:
        """The image of a row: its size now, its pixels when they are asked for, as they are in the file.

        Raises:
            Broken: The file is gone, or no image.
        """
        return open_picture(self.encoded(row))

    def pixels(self, row: int, reading: Reading = RGB) -> np.ndarray:
        """Decoded pixels, uint8 ``[Y, X, C]`` with the channels of ``reading``, orientation applied.

        Raises:
            Broken: The file cannot be decoded, or has other channels.
        """
        return reading.of(self.picture(row)).pixels()

    def extra(self, row: int, name: str) -> Num[np.ndarray, "Y X"] | None:
        """Ground truth that is a picture itself, ``[Y, X]``, or None where the row has none: ``mask`` (class numbers) and
        ``depth`` (16 bits are millimetres, 0 = no reading); a drawn world has more. See ``ground_truth``, ``toy``.

        Raises:
            Broken: It is there and cannot be read.
        """
        return None

    def stamp(self, row: int) -> str | None:
        """A text that changes when ``encoded(row)`` does, had without reading that; None where there is no such text."""
        return None

    def select(self, rows: Int[np.ndarray, " n"]) -> Source:
        """The same source reduced to the given rows, in the given order."""
        return _Rows(self, np.asarray(rows, dtype=np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the row ids and labels; where the files lie does not count."""
        # That of base/config.py for ``[ids, labels or None]``, without the text of a million ids at once.
        digest, labels = hashlib.sha256(b"["), self.columns.get("label")
        _update(digest, self.columns["id"])
        digest.update(b",")
        if labels is None:
            digest.update(b"null")
        else:
            _update(digest, labels)
        digest.update(b"]")
        return digest.hexdigest()[:16]


_AT_ONCE = 65_536


def _update(digest: hashlib._Hash, column: np.ndarray) -> None:
    """Add a column as compact JSON."""
    digest.update(b"[")
    for start in range(0, len(column), _AT_ONCE):
        text = json.dumps(column[start : start + _AT_ONCE].tolist(), separators=(",", ":"))
        digest.update((("," if start else "") + text[1:-1]).encode())
    digest.update(b"]")


def file_stamp(path: str | Path) -> str | None:
    """Size and time of the last change of a file, None where there is none; for ``Source.stamp``."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path for each of a million files takes seconds)
    except (OSError, ValueError):
        return None
    return f"{found.st_size}:{found.st_mtime_ns}"


Opener = Callable[[str], Source]
"""Opens an address; given to sources that are made of others, which know no table."""


class _Rows(Source):
    """Some rows of another source."""

    def __init__(self, whole: Source, rows: Int[np.ndarray, " n"]) -> None:
        self.address, self.rejected, self._whole, self._rows = whole.address, whole.rejected, whole, rows
        self.by_name, self.mask_names, self.part_of = whole.by_name, whole.mask_names, (whole, rows)
        self.columns = {name: column[rows] for name, column in whole.columns.items()}

    def encoded(self, row: int) -> bytes:
        return self._whole.encoded(int(self._rows[row]))

    def picture(self, row: int) -> Picture:
        return self._whole.picture(int(self._rows[row]))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        return self._whole.extra(int(self._rows[row]), name)

    def stamp(self, row: int) -> str | None:
        return self._whole.stamp(int(self._rows[row]))


def first_rows(source: Source, count: int) -> Source:
    """So many rows of a source, for a look at all of it: its first ones.

    Where every split lies there class after class, as in folders, the first rows would be the first classes; then they are
    drawn, always the same ones, and keep their order.
    """
    if count >= len(source):
        return source
    rows = np.arange(count)
    if _class_after_class(source):
        rows = np.sort(permute(rows, images=len(source), seed=key(0, "first rows")))
    return source.select(rows)


def _class_after_class(source: Source) -> bool:
    """Whether the rows of each class of a split stand together."""
    columns = source.columns
    if "label" not in columns:
        return False
    splits = columns.get("split", np.zeros(len(source)))
    for split in np.unique(splits):
        labels = columns["label"][(splits == split) & (columns["label"] >= 0)]
        if np.count_nonzero(np.diff(labels)) >= max(1, len(np.unique(labels))):
            return False
    return True
