"""The images that evaluations are asked of: opened once for each way of asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.sources.source import Source, agreed, first_rows
from dinoforge.data.sources.table import has_split, open_source
from dinoforge.evaluate.evaluation import Needs, Sides
from dinoforge.evaluate.several import shows_several
from dinoforge.recipes.opened import labelled


@dataclass(frozen=True, slots=True)
class Named:
    """What the user says of the images."""

    data: str | None = None
    train: str | None = None
    test: str | None = None
    train_rows: int | None = None
    test_rows: int | None = None

    def check(self) -> None:
        """Refuse what names no images, or twice.

        Raises:
            ConfigError: It does.
        """
        if self.data is not None and (self.train or self.test):
            raise ConfigError("data= and train=, test= exclude each other.")
        if self.data is None and (self.train is None or self.test is None):
            raise ConfigError("data= is required, or train= and test= together.")


def opened_sides(named: Named, needs: Needs) -> Sides:
    """The images for one way of asking.

    Raises:
        DataError: Nothing there, or not what is needed.
        ConfigError: Rows of a side that there is not.
    """
    sides = _SIDES[needs](named)
    if sides.itself:
        some = _first(sides.asked, named.test_rows)
        return Sides(some, some, itself=True)
    return Sides(_first(sides.known, named.train_rows), _first(sides.asked, named.test_rows))


def _first(source: Source, count: int | None) -> Source:
    return source if count is None else first_rows(source, count)


def _classes(named: Named) -> Sides:
    """Train and test, else val; without splits every fifth image is asked."""
    if named.data is not None:
        whole = open_source(named.data)
        return Sides(*(_split(whole) if shows_several(whole) else labelled(named.data)))
    known, asked = _both(named, ["train"], ["test", "val"])
    if shows_several(known) and shows_several(asked):
        return Sides(known, asked)
    for source in (known, asked):
        labels = source.columns.get("label")
        if labels is None or (labels < 0).any():
            raise DataError(f"{source.address} has no labels, or not for every image.")
    return Sides(known, asked)


def _split(whole: Source) -> tuple[Source, Source]:
    """Train and val, which are learnt from as one, and test.

    Raises:
        DataError: No such splits.
    """
    splits = whole.columns.get("split", np.asarray([""] * len(whole)))
    known, asked = np.isin(splits, ["train", "val"]), splits == "test"
    if not known.any() or not asked.any():
        raise DataError(f"{whole.address} has no splits train and test.")
    return whole.select(np.flatnonzero(known)), whole.select(np.flatnonzero(asked))


def _gallery(named: Named) -> Sides:
    """Gallery and query; without these splits each image is sought among all others."""
    if named.data is None:
        return Sides(*_both(named, ["gallery"], ["query"]))
    whole = open_source(named.data)
    if not has_split(whole, "gallery") or not has_split(whole, "query"):
        return Sides(whole, whole, itself=True)
    splits = whole.columns["split"]
    known, asked = (whole.select(np.flatnonzero(splits == name)) for name in ("gallery", "query"))
    return Sides(known, asked)


def _images(named: Named) -> Sides:
    """All images that are asked."""
    whole = open_source(named.data or str(named.test))
    return Sides(whole, whole, itself=True)


def _both(named: Named, first: list[str], second: list[str]) -> tuple[Source, Source]:
    """What ``train`` and ``test`` name, of each the first split of its own that it has."""
    found = []
    for address, splits in ((str(named.train), first), (str(named.test), second)):
        source = open_source(address)
        split = next((name for name in splits if has_split(source, name)), None)
        found.append(source if split is None else source.select(np.flatnonzero(source.columns["split"] == split)))
    known, asked = agreed(found)
    return known, asked


_SIDES: dict[Needs, Callable[[Named], Sides]] = {"classes": _classes, "gallery": _gallery, "images": _images}
