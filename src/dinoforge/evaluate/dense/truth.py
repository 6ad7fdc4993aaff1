"""A picture together with its map of ground truth.

Axes: Y by X pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num, UInt8

from dinoforge.base.errors import DataError
from dinoforge.base.log import say, track
from dinoforge.data.decode import Broken
from dinoforge.data.picture import Reading
from dinoforge.data.sources.source import Source


@dataclass(frozen=True, slots=True)
class Pair:
    """A decoded picture and what is true of its pixels."""

    pixels: UInt8[np.ndarray, "Y X C"]
    truth: Num[np.ndarray, "Y X"]
    """Whole numbers as int32, whatever they are stored as: any number may say that nothing is known, and maps go together."""


def read_pair(source: Source, row: int, truth: str, reading: Reading) -> Pair:
    """Both of a row.

    Args:
        truth: Name of the map, see ``Source.extra``.

    Raises:
        Broken: One of them cannot be read, or there is no map.
        DataError: They differ in size.
    """
    found = source.extra(row, truth)
    if found is None:
        raise Broken(f"it has no {truth}")
    pixels = source.pixels(row, reading)
    _agree(str(source.columns["id"][row]), truth, found, pixels.shape[:2])
    return Pair(pixels, found if found.dtype.kind == "f" else found.astype(np.int32))


def usable_pairs(
    source: Source, truth: str, reading: Reading, *, on_broken: Callable[[str, str], None], title: str
) -> Iterator[Pair]:
    """The pairs of a source, one after the other; of those that cannot be read it is told.

    Raises:
        DataError: None can be read, or one has a map of another size than its picture.
    """
    found = 0
    for row in track(range(len(source)), title, len(source)):
        try:
            pair = read_pair(source, row, truth, reading)
        except Broken as error:
            on_broken(str(source.columns["id"][row]), str(error))
            continue
        found += 1
        yield pair
    if not found:
        raise DataError(f"{source.address} has no {truth} that can be read together with its picture.")


def with_truth(
    source: Source, truth: str, *, seen: Callable[[str, np.ndarray], None], on_broken: Callable[[str, str], None]
) -> Source:
    """The rows of a source that have a map as large as the picture; how many have none is said.

    Args:
        seen: Is shown every map and the id of its row.

    Raises:
        DataError: No row has one, or one has another size than its picture.
    """
    rows, without = list[int](), 0
    for row in track(range(len(source)), f"{truth}s of {source.address}", len(source)):
        name = str(source.columns["id"][row])
        try:
            found = source.extra(row, truth)
            if found is None:
                without += 1
                continue
            picture = source.picture(row)
            _agree(name, truth, found, (picture.height, picture.width))
        except Broken as error:
            on_broken(name, str(error))
            continue
        seen(name, found)
        rows.append(row)
    if not rows:
        raise DataError(
            f"{source.address} has no {truth} that can be read; {truth}s are a column of a table or of metadata.csv."
        )
    if without:
        say(f"{source.address}: {without:,} of {len(source):,} images have no {truth} and are left out.")
    return source if len(rows) == len(source) else source.select(np.asarray(rows))


def _agree(name: str, truth: str, found: np.ndarray, size: tuple[int, ...]) -> None:
    """Refuse a map of another size, which may not be taken for one that is broken: all may be."""
    if found.shape != size:
        sizes = ["{}x{}".format(*shape[::-1]) for shape in (found.shape, size)]
        raise DataError(f"{name}: the {truth} has {sizes[0]} pixels and the picture {sizes[1]}; they must agree.")
