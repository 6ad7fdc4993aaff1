"""What is sought in a gallery: features of both sides, and which gallery images are relevant to which query.

Two ways to say what is relevant, by what columns there are: a ``group`` on both sides, equal where two images show the same;
or for every query the ids of gallery images that are ``easy``, ``hard`` or ``junk``, a line each (revisited Oxford and Paris).

Axes: Q queries, q of them at once, N gallery images.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Int, UInt8

from dinoforge.base.errors import DataError
from dinoforge.data.sources.source import Source
from dinoforge.evaluate.evaluation import Sides
from dinoforge.features.eyes import Eyes, Look
from dinoforge.features.views import View, longest

EASY, HARD, JUNK = 1, 2, 3
"""What an image is to a query; 0 is anything else. Junk, and the query itself, count neither for nor against a ranking."""
LISTS = {"easy": EASY, "hard": HARD, "junk": JUNK}

Grades = Callable[[Int[np.ndarray, " q"], Int[np.ndarray, "q K"]], UInt8[np.ndarray, "q K"]]
"""Of rows of the queries' source, and for each some rows of the gallery's."""


def view_of(eyes: Eyes, long_side: int | None) -> View | None:
    """Whole pictures with a long side of so many pixels; None, the usual middle, where none are given.

    Raises:
        ConfigError: Fewer pixels than a patch has.
    """
    return None if long_side is None else longest(long_side, patch=eyes.backbone.module.patch)


def looks(eyes: Eyes, sides: Sides, *, long_side: int | None, kind: str = "image") -> tuple[Look, Look]:
    """Features of the gallery and of the queries, see ``view_of``."""
    view = view_of(eyes, long_side)
    known = eyes.look(sides.known, kind, view=view)
    return known, known if sides.itself else eyes.look(sides.asked, kind, view=view)


def groups_of(sides: Sides, *, instead: str) -> tuple[Int[np.ndarray, " Q"], Int[np.ndarray, " N"]]:
    """The groups of queries and gallery, -1 for an image of none.

    Args:
        instead: What else would do, for messages.

    Raises:
        DataError: A side has no groups, or no query has another image in its group.
    """
    for source in (sides.asked, sides.known):
        if "group" not in source.columns or not (source.columns["group"] >= 0).any():
            raise DataError(
                f"{source.address} has no groups; its images take a column group that is equal where they show the same "
                f"(?group=COLUMN takes another), or {instead}."
            )
    asked, known = (source.columns["group"].astype(np.int64) for source in (sides.asked, sides.known))
    numbers, count = np.unique(known[known >= 0], return_counts=True)
    if not np.isin(asked, numbers[count > int(sides.itself)]).any():
        rest = "another image" if sides.itself else f"an image of {sides.known.address}"
        raise DataError(f"no image of {sides.asked.address} shares its group with {rest}; nothing can be found there.")
    return asked, known


def same(asked: Int[np.ndarray, " Q"], known: Int[np.ndarray, " N"], *, itself: bool) -> Grades:
    """Images with the query's number are easy, -1 is like nothing; where both sides are the same, its own row is junk."""

    def grades(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        own = asked[queries][:, None]
        found = np.where((known[rows] == own) & (own >= 0), EASY, 0).astype(np.uint8)
        if itself:
            found[rows == queries[:, None]] = JUNK
        return found

    return grades


def is_revisited(source: Source) -> bool:
    """Whether queries name what is relevant to them."""
    return LISTS.keys() <= source.columns.keys()


def revisited(sides: Sides) -> Grades:
    """What the lists of each query say.

    Raises:
        DataError: A list names an image that the gallery does not have, or that another list has too.
    """
    place = {name: row for row, name in enumerate(sides.known.columns["id"].tolist())}
    listed = [_listed(sides, row, place) for row in range(len(sides.asked))]
    starts = np.cumsum([0, *(len(one) for one in listed)])
    rows, grade = np.concatenate([np.zeros((0, 2), np.int64), *listed]).T
    spans = list(pairwise(starts.tolist()))
    images = len(sides.known)

    def grades(queries: np.ndarray, ranked: np.ndarray) -> np.ndarray:
        whole = np.zeros((len(queries), images), np.uint8)
        for line, query in zip(whole, queries.tolist(), strict=True):
            some = slice(*spans[query])
            line[rows[some]] = grade[some]
        return np.take_along_axis(whole, ranked, axis=1)

    return grades


def _listed(sides: Sides, row: int, place: dict[str, int]) -> Int[np.ndarray, "n 2"]:
    """Gallery rows that one query names, and their grades."""
    found = {row: JUNK} if sides.itself else {}
    query = sides.asked.columns["id"][row]
    for name, grade in LISTS.items():
        for image in str(sides.asked.columns[name][row]).splitlines():
            if image not in place:
                raise DataError(f"query {query} names {image!r} as {name}, which is not in {sides.known.address}.")
            if found.setdefault(place[image], grade) != grade:
                raise DataError(f"query {query} names {image!r} as {name} and as something else; it takes one list.")
    return np.asarray(list(found.items()), np.int64).reshape(-1, 2)
