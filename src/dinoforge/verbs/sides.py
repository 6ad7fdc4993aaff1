"""The images that evaluations are asked of: opened once for each way of asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources.numbers import agreed
from dinoforge.data.sources.source import Source, first_rows
from dinoforge.data.sources.table import has_split, open_clips, open_source
from dinoforge.evaluate.evaluation import Needs, Sides
from dinoforge.evaluate.several import shows_several
from dinoforge.recipes.opened import apart, every_fifth, labelled


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
    """Train, which val joins, and test, else train and val; without splits every fifth image is asked, see ``every_fifth``."""
    if named.data is not None:
        whole = open_source(named.data)
        return Sides(*(_split(whole) if shows_several(whole) else labelled(named.data)))
    known, asked = _both(named, ["train"], ["test", "val"])
    if shows_several(known) and shows_several(asked):
        return Sides(known, asked)
    return _labelled(known, asked, "image")


def _labelled(known: Source, asked: Source, what: str) -> Sides:
    for source in (known, asked):
        labels = source.columns.get("label")
        if labels is None or (labels < 0).any():
            raise DataError(f"{source.address} has no labels, or not for every {what}.")
    return Sides(known, asked)


def _clips(named: Named) -> Sides:
    """The same of clips."""
    if named.data is not None:
        return Sides(*apart(open_clips(named.data)))
    return _labelled(*_both(named, ["train"], ["test", "val"], opening=open_clips), "clip")


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


def _asked(named: Named) -> Sides:
    """The test split, else val, else all images."""
    whole = open_source(named.data or str(named.test))
    split = next((name for name in ("test", "val") if has_split(whole, name)), None)
    if split is not None:
        whole = whole.select(np.flatnonzero(whole.columns["split"] == split))
    return Sides(whole, whole, itself=True)


def _both(
    named: Named, first: list[str], second: list[str], *, opening: Callable[[str], Source] = open_source
) -> tuple[Source, Source]:
    """What ``train`` and ``test`` name, of each the first split of its own that it has."""
    found = []
    for address, splits in ((str(named.train), first), (str(named.test), second)):
        source = opening(address)
        split = next((name for name in splits if has_split(source, name)), None)
        found.append(source if split is None else source.select(np.flatnonzero(source.columns["split"] == split)))
    known, asked = agreed(found)
    return known, asked


def _mapped(truth: str) -> Callable[[Named], Sides]:
    """Images with maps of ground truth: train, which val joins where test has maps too; without splits every fifth is asked."""

    def sides(named: Named) -> Sides:
        if named.data is None:
            return Sides(*_both(named, ["train"], ["test", "val"]))
        whole = open_source(named.data)
        parts = {name: _of_split(whole, name) for name in ("train", "val", "test")}
        there = {name: part for name, part in parts.items() if _has_maps(part, truth)}
        if "train" in there and "test" in there:
            known = np.isin(whole.columns["split"], ["train", "val"])
            return Sides(whole.select(np.flatnonzero(known)), there["test"])
        if "train" in there and "val" in there:
            return Sides(there["train"], there["val"])
        split = [name for name, part in parts.items() if len(part)]
        if len(split) > 1:  # every fifth of all would learn from what is to be asked
            raise DataError(
                f"{whole.address} has {truth}s for {' and '.join(there) or 'none'} of its splits {', '.join(split)}; it takes "
                "train and test, or train and val."
            )
        if not _has_maps(whole, truth) or len(whole) < 5:
            raise DataError(
                f"{whole.address} has no {truth} for its images, or too few images; {truth}s are a column of a table or of "
                "metadata.csv."
            )
        return Sides(*every_fifth(whole, classes=False))

    return sides


def _of_split(whole: Source, name: str) -> Source:
    splits = whole.columns.get("split", np.asarray([""] * len(whole)))
    return whole.select(np.flatnonzero(splits == name))


def _has_maps(source: Source, truth: str) -> bool:
    return any(_has_map(source, row, truth) for row in range(len(source)))


def _has_map(source: Source, row: int, truth: str) -> bool:
    try:
        return source.extra(row, truth) is not None
    except Broken:
        return True  # it is there


_SIDES: dict[Needs, Callable[[Named], Sides]] = {
    "classes": _classes, "clips": _clips, "gallery": _gallery, "images": _images, "asked": _asked, "masks": _mapped("mask"),
    "depths": _mapped("depth"),
}  # fmt: skip
