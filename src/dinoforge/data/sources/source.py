"""The interface of every source of images: rows that are known without decoding, pixels on demand.

Axes: N rows, Y by X pixels, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int

from dinoforge.base.config import fingerprint
from dinoforge.data.decode import decode


class Source(ABC):
    """N images in a fixed order. Pickles to a worker process without its pixels.

    ``columns`` holds what is known of every row, each an array of length N. ``id`` is always there (the source's own id,
    else the relative path); ``label`` (int64, -1 = unknown), ``label_name``, ``split``, ``group`` (int64, -1 = unknown)
    where the source has them, and what else it knows.
    """

    address: str
    """The address as the user wrote it, without credentials."""
    columns: Mapping[str, np.ndarray]
    rejected: Sequence[tuple[str, str]] = ()
    """Files that were found but are no images, each with the reason."""

    def __len__(self) -> int:
        return len(self.columns["id"])

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """The bytes of the image file of a row (JPEG, PNG …).

        Raises:
            Broken: The row's file is gone or unreadable.
        """

    def pixels(self, row: int) -> np.ndarray:
        """Decoded pixels, uint8 ``[Y, X, C]``, orientation applied.

        Raises:
            Broken: The file cannot be decoded.
        """
        return decode(self.encoded(row))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """Ground truth that is a picture itself (``mask``, ``depth`` …), decoded, or None where the source has none."""
        return None

    def select(self, rows: Int[np.ndarray, " n"]) -> Source:
        """The same source reduced to the given rows, in the given order."""
        return _Rows(self, np.asarray(rows, dtype=np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the row ids and labels; where the files lie does not count."""
        labels = self.columns.get("label")
        return fingerprint([[str(name) for name in self.columns["id"]], None if labels is None else labels.tolist()])


Opener = Callable[[str], Source]
"""Opens an address; given to sources that are made of others, which know no table."""


class _Rows(Source):
    """Some rows of another source."""

    def __init__(self, whole: Source, rows: Int[np.ndarray, " n"]) -> None:
        self.address, self.rejected, self._whole, self._rows = whole.address, whole.rejected, whole, rows
        self.columns = {name: column[rows] for name, column in whole.columns.items()}

    def encoded(self, row: int) -> bytes:
        return self._whole.encoded(int(self._rows[row]))

    def pixels(self, row: int) -> np.ndarray:
        return self._whole.pixels(int(self._rows[row]))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        return self._whole.extra(int(self._rows[row]), name)
