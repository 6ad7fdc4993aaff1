"""Masks of a published set whose files number the classes otherwise than they are told apart.

Axes: Y by X pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Num

from dinoforge.data.decode import Broken, Picture
from dinoforge.data.sources.source import Source

IGNORED = 255
"""What masks say where nothing is known."""


class Renumbered(Source):
    """A source whose masks hold classes from 0 on, and 255 where nothing is known.

    Args:
        numbers: The class of every number that stands in the files; numbers that are not here are ignored.
        names: What the classes are called, in the order of their numbers.
    """

    def __init__(self, source: Source, numbers: Mapping[int, int], names: Sequence[str] = ()) -> None:
        self.address, self.columns, self.rejected = source.address, source.columns, source.rejected
        self.by_name, self.mask_names, self._source = source.by_name, tuple(names), source
        self._numbers = np.full(256, IGNORED, np.uint8)
        for number, of_class in numbers.items():
            self._numbers[number] = of_class

    def encoded(self, row: int) -> bytes:
        """As the source has it."""
        return self._source.encoded(row)

    def picture(self, row: int) -> Picture:
        """As the source has it."""
        return self._source.picture(row)

    def stamp(self, row: int) -> str | None:
        """As the source has it."""
        return self._source.stamp(row)

    def extra(self, row: int, name: str) -> Num[np.ndarray, "Y X"] | None:
        """The mask by the classes' own numbers; other truths as the source has them.

        Raises:
            Broken: As the source, or numbers beyond a byte.
        """
        found = self._source.extra(row, name)
        if found is None or name != "mask":
            return found
        if found.min(initial=0) < 0 or found.max(initial=0) > IGNORED:
            raise Broken("the mask holds numbers beyond 0 to 255")
        return np.asarray(self._numbers[found.astype(np.int64)])
