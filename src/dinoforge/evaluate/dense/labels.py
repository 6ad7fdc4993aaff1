"""The classes of masks: how many there are, what they are called, and which number says that nothing is known.

Axes: Y by X pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Num
from pydantic import Field

from dinoforge.base.errors import DataError
from dinoforge.base.home import at_home
from dinoforge.data.sources.options import split_address
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.dense.truth import with_truth
from dinoforge.evaluate.evaluation import Sides

FILE = "classes.json"
IGNORE = 255
"""What masks usually say where nothing is known."""
_MOST = 10_000
_LARGEST = 2**31 - 1
Ignored = Annotated[int, Field(ge=-_LARGEST, le=_LARGEST)]
"""A number in masks where nothing is known."""


@dataclass(frozen=True, slots=True)
class MaskClasses:
    """The classes of masks, numbered from 0."""

    names: tuple[str, ...]
    """In the order of their numbers; a number where there is no name."""
    ignore: int
    """What masks say where nothing is known."""

    def __len__(self) -> int:
        return len(self.names)


def labelled_sides(
    sides: Sides, *, classes: int | None, ignore: int | None, on_broken: Callable[[str, str], None]
) -> tuple[Sides, MaskClasses]:
    """The images of both sides that have a mask, and the classes of these.

    There are as many classes as is said, else as ``classes.json`` beside the images names, else as the masks of ``known`` hold.

    Args:
        ignore: What masks say where nothing is known; None: what ``classes.json`` says, else 255.

    Raises:
        DataError: No masks, masks of other sizes than their pictures, numbers of no class, or one class alone.
    """
    names, theirs = _beside(sides.known)
    nothing = ignore if ignore is not None else theirs if theirs is not None else IGNORE
    found, count = list[Source](), classes or len(names)
    for source in (sides.known, sides.asked):
        seen = _Highest(nothing)
        found.append(with_truth(source, "mask", seen=seen, on_broken=on_broken))
        if seen.number < 0:
            raise DataError(f"{source.address}: every pixel of its masks is {nothing}, which is ignored.")
        count = count or seen.number + 1
        if count < 2:
            raise DataError(f"the masks of {source.address} know one class alone; to be told apart there must be two.")
        if seen.number >= count:
            raise DataError(
                f"{seen.where} has the class {seen.number}; there are {count}, from 0, and {nothing} is ignored. Give "
                "classes= or ignore= if that is wrong."
            )
    called = names if len(names) == count else tuple(str(number) for number in range(count))
    return Sides(found[0], found[1]), MaskClasses(called, nothing)


class _Highest:
    """Looks at masks for the highest number."""

    def __init__(self, ignore: int) -> None:
        self.number, self.where, self._ignore = -1, "", ignore

    def __call__(self, name: str, mask: Num[np.ndarray, "Y X"]) -> None:
        known = mask[mask != self._ignore]
        if not known.size:
            return
        lowest, highest = int(known.min()), int(known.max())
        if lowest < 0 or highest >= _MOST:
            odd = lowest if lowest < 0 else highest
            raise DataError(f"{name} has {odd} in its mask; classes are numbers from 0 to {_MOST - 1}.")
        if highest > self.number:
            self.number, self.where = highest, name


def classes_file(source: Source) -> Path | None:
    """``classes.json`` in the folder of the images, or beside their file; None where there is none."""
    if "://" in source.address:
        return None
    place = at_home(split_address(source.address)[0])
    file = (place if place.is_dir() else place.parent) / FILE
    return file if file.is_file() else None


def _beside(source: Source) -> tuple[tuple[str, ...], int | None]:
    """What the source says of its masks, else ``classes.json``.

    Raises:
        DataError: It holds something else than names and a number, or a name twice.
    """
    if source.mask_names:
        _differ(source.address, source.mask_names)
        return tuple(source.mask_names), None
    file = classes_file(source)
    if file is None:
        return (), None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        names, ignore = told["classes"], told.get("ignore_index")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f'{file} takes {{"classes": [names], "ignore_index": number}}.') from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: classes takes a list of names.")
    _differ(str(file), names)
    if not isinstance(ignore, int | None) or isinstance(ignore, bool) or abs(ignore or 0) > _LARGEST:
        raise DataError(f"{file}: ignore_index takes a number from {-_LARGEST} to {_LARGEST}; got {ignore!r}.")
    return tuple(names), ignore


def _differ(where: str, names: Sequence[str]) -> None:
    """Refuse a name that stands twice: scores are called by names."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {twice[0]!r} is the name of several classes; each takes one of its own.")
