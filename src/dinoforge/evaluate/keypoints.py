"""Which points of two pictures are the same: pairs that a source lists, or drawn among pictures that show the same.

A source lists pairs in a column ``pairs``, a line of JSON each: ``{"with": id, "points": [[x, y, u, v], …], "box": [left, top,
right, bottom]}``, the points in pixels of this picture and of the other, the box that of the object in the other. Else its
pictures have keypoints, by a column ``keypoints`` (``{"name": [x, y]}``, those that can be seen) or drawn (``extra``), and
any two of one group or class are a pair by the names that both have. A box is that of the column ``box``, or of the drawn
thing with number 1.

Axes: N rows, K points of a pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int

from dinoforge.base.errors import DataError
from dinoforge.base.log import say
from dinoforge.base.random import numpy_generator
from dinoforge.data.sources.source import Source

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of a source, and where each of some points is in both."""

    first: int
    second: int
    """Rows."""
    points: Float64[np.ndarray, "K 2 2"]
    """x and y in the first, and in the second, in pixels from the corner; K may be 0."""
    side: float | None
    """Larger side of the object's box in the second, in pixels; None where nobody asked."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Two rows that are a pair, and the line that says how where it is listed."""

    first: int
    second: int
    line: str | None = None


def lists_pairs(source: Source) -> bool:
    """Whether the source says itself which pictures are pairs."""
    return "pairs" in source.columns and any(source.columns["pairs"].tolist())


def listed_pairs(source: Source) -> list[Chosen]:
    """Every pair that a source lists, in its order. Of a selection, pairs with pictures that were not selected are left out,
    and how many is said.

    Raises:
        DataError: A line is no such JSON, or names a picture that is not there.
    """
    place = {name: row for row, name in enumerate(source.columns["id"].tolist())}
    whole, found, left = _whole(source), list[Chosen](), 0
    beside = {*whole.columns["id"].tolist()} - place.keys() if whole is not source else set[str]()
    for row, lines in enumerate(source.columns["pairs"].tolist()):
        for line in lines.splitlines():
            held = _json(line, f"{source.columns['id'][row]} has the pair")
            other = held.get("with") if isinstance(held, dict) else None
            if isinstance(other, str) and other in beside:
                left += 1
                continue
            if not isinstance(other, str) or other not in place:
                raise DataError(
                    f"{source.columns['id'][row]} has a pair with {other!r}, which {source.address} has not."
                )
            found.append(Chosen(row, place[other], line))
    if left:
        say(
            f"{source.address}: {left:,} pairs are left out, for their other picture is not among the {len(source):,} rows."
        )
    return found


def _whole(source: Source) -> Source:
    """What a source is a selection of; itself where it is none."""
    while source.part_of is not None:
        source = source.part_of[0]
    return source


def drawn_pairs(source: Source, *, by: Literal["group", "label"], count: int, seed: int) -> list[Chosen]:
    """So many pairs of two rows with the same number, each ordered pair as likely as any other, none twice; all if fewer.

    Raises:
        DataError: The source has no such column, or no two rows share a number.
    """
    numbers = source.columns.get(by, np.full(len(source), -1))
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    _, starts, sizes = np.unique(numbers[order], return_index=True, return_counts=True)
    ends = np.cumsum(sizes * (sizes - 1))
    if not len(ends) or not ends[-1]:
        raise DataError(
            f"no two images of {source.address} share a {by}, so none shows what another one shows; correspondence takes a "
            f"column {by} (or pairs), equal where they do."
        )
    total = int(ends[-1])
    some = numpy_generator(seed, "pairs").choice(total, min(count, total), replace=False)
    some.sort()
    which = np.searchsorted(ends, some, side="right")
    size = sizes[which]
    first, second = np.divmod(some - (ends - sizes * (sizes - 1))[which], size - 1)
    second += second >= first
    rows = [order[starts[which] + part].tolist() for part in (first, second)]
    return [Chosen(one, other) for one, other in zip(*rows, strict=True)]


def pair_of(source: Source, chosen: Chosen, *, boxes: bool) -> Pair:
    """The points of a pair.

    Args:
        boxes: Whether the object's box is wanted.

    Raises:
        DataError: What a picture or a line says is not of the form above, or says nothing of boxes.
    """
    where = f"{source.columns['id'][chosen.first]} and {source.columns['id'][chosen.second]}"
    if chosen.line is not None:
        held = json.loads(chosen.line)
        points = _numbers(held.get("points"), (-1, 4), f"the pair {where}").reshape(-1, 2, 2)
        box = _numbers(held["box"], (4,), f"the box of {where}") if boxes and "box" in held else None
    else:
        one, other = (points_of(source, row) for row in (chosen.first, chosen.second))
        points = np.asarray([[one[name], other[name]] for name in one if name in other], np.float64).reshape(-1, 2, 2)
        box = box_of(source, chosen.second) if boxes else None
    if not boxes:
        return Pair(chosen.first, chosen.second, points, None)
    if box is None:
        raise DataError(
            f"{source.columns['id'][chosen.second]} has no box; correspondence.relative_to=image does without boxes."
        )
    side = float(max(box[2] - box[0], box[3] - box[1]))
    if side <= 0:
        raise DataError(f"{where} have the box {box.tolist()}; it takes left, top, right, bottom in rising order.")
    return Pair(chosen.first, chosen.second, points, side)


def points_of(source: Source, row: int) -> Mapping[str, tuple[float, float]]:
    """The keypoints that can be seen in a picture, by their names; none where the row says nothing.

    Raises:
        DataError: It says something else.
    """
    if "keypoints" in source.columns:
        text, name = str(source.columns["keypoints"][row]), source.columns["id"][row]
        held = _json(text, f"{name} has the keypoints") if text else {}
        if not isinstance(held, dict):
            raise DataError(f'{name} has the keypoints {text[:80]!r}; they take the form {{"name": [x, y]}}.')
        seen = {key: value for key, value in held.items() if value is not None}
        found = {key: _numbers(value, (2,), f"keypoint {key!r} of {name}") for key, value in seen.items()}
        return {key: (float(x), float(y)) for key, (x, y) in found.items()}
    drawn = source.extra(row, "keypoints")
    if drawn is None:
        return {}
    return {str(number): (x, y) for number, (x, y, seen) in enumerate(drawn.tolist()) if seen}


def box_of(source: Source, row: int) -> Float64[np.ndarray, "4"] | None:
    """Left, top, right and bottom of the object in a picture, None where nothing says it.

    Raises:
        DataError: It is said in another form.
    """
    if "box" in source.columns:
        text, name = str(source.columns["box"][row]), source.columns["id"][row]
        return _numbers(_json(text, f"{name} has the box"), (4,), f"the box of {name}") if text else None
    instance = source.extra(row, "instance")
    if instance is None or not (instance == 1).any():
        return None
    y, x = np.nonzero(instance == 1)
    return np.asarray([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float64)


def outside(points: Float64[np.ndarray, "K 2"], *, size: tuple[int, int]) -> Int[np.ndarray, " n"]:
    """Which points do not lie in a picture of that width and height."""
    return np.flatnonzero(~((points >= 0) & (points <= np.asarray(size))).all(axis=1))


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{what} {text[:80]!r}, which is no JSON.") from None


def _numbers(value: Any, shape: tuple[int, ...], what: str) -> Float64[np.ndarray, "..."]:
    """Finite numbers of that shape; -1 stands for any length."""
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):  # the last of a whole number beyond all floats
        found = np.zeros(0)
    if shape[0] == -1 and isinstance(value, list) and not value:
        found = np.zeros((0, *shape[1:]))
    fits = found.ndim == len(shape) and all(want in {-1, has} for want, has in zip(shape, found.shape, strict=True))
    if not fits or not np.isfinite(found).all():
        form = "lists of 4 numbers x, y, u, v" if shape[0] == -1 else f"{shape[0]} numbers"
        raise DataError(f"{what} is {str(value)[:80]}; it takes {form}.")
    return found
