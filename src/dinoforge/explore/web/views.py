"""Every view: what it is asked, what it answers, which page shows it. A new one is a function, a template and a line here.

The page and its JSON twin get their answer from the same function, so they cannot differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dinoforge.explore.answers import Asked, Shown
from dinoforge.explore.groups import Group, Outliers, near_copies, outliers
from dinoforge.explore.layout import Point, map_of
from dinoforge.explore.membership import Membership, membership
from dinoforge.explore.parts import Matching, Parts, matching
from dinoforge.explore.parts import coloured as parts_of
from dinoforge.explore.search import Hit, RegionHit, by_image, by_region
from dinoforge.explore.web.asks import (
    MOST_OUTLIERS,
    Asks,
    AsksGroups,
    AsksImage,
    AsksList,
    AsksMap,
    AsksMatch,
    AsksOutliers,
    AsksParts,
    AsksRegion,
    AsksSearch,
)
from dinoforge.explore.web.desk import Absent, Desk
from dinoforge.explore.web.names import LabelCount

_A_PAGE = 60
_GROUPS_A_PAGE = 20
_MOST_GROUPS = 1000
_MOST_LABELS = 500
_COLOURS = 12
"""Kinds of points that have a colour of their own; the rest share one."""


class Unasked(Exception):
    """Nothing was asked yet: a page shows its form, a program is told what is missing."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A part of the collection."""

    images: tuple[Shown, ...]
    page: int
    pages: int
    matching: int
    """Images that were asked for, on all pages."""
    total: int
    """Images of the collection."""
    labels: tuple[LabelCount, ...]
    """The most frequent labels of the collection."""


@dataclass(frozen=True, slots=True)
class Found:
    """The images most like one."""

    image: Shown
    hits: tuple[Hit, ...]
    """Most alike first."""


@dataclass(frozen=True, slots=True)
class FoundPlaces:
    """The places most like one."""

    image: Shown
    hits: tuple[RegionHit, ...]
    """Most alike first, one an image."""


@dataclass(frozen=True, slots=True)
class Coloured:
    """Images and their patches in colours."""

    images: tuple[Parts, ...]


@dataclass(frozen=True, slots=True)
class CopiesPage:
    """Some of the groups of near copies."""

    groups: tuple[Group, ...]
    page: int
    pages: int
    total: int
    """Groups in all."""
    images: int
    """Images in all groups."""
    threshold: float
    """Similarity above which two images are near copies."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Points of one colour."""

    name: str
    images: int
    """Of all points of the map."""


@dataclass(frozen=True, slots=True)
class Dot:
    """An image on the map."""

    row: int
    x: float
    y: float
    kind: int
    """Place in ``kinds``; -1 for none of them."""
    name: str


@dataclass(frozen=True, slots=True)
class Plane:
    """The map of the collection."""

    points: tuple[Dot, ...]
    kinds: tuple[Kind, ...]
    """The most frequent clusters, labels or reasons."""
    clusters: int
    of: int
    """Images of the collection."""


def listing(desk: Desk, asks: AsksList) -> Listing:
    """The collection, page after page, by label or by a part of the id."""
    names, whole = desk.names, desk.collection
    rows = names.rows(label=asks.label, find=asks.find)
    pages = max(1, -(-len(rows) // _A_PAGE))
    shown = rows[(asks.page - 1) * _A_PAGE : asks.page * _A_PAGE].tolist()
    images = tuple(whole.about(row) for row in shown)
    return Listing(images, asks.page, pages, len(rows), len(whole), names.counts[:_MOST_LABELS])


def like(desk: Desk, asks: AsksSearch) -> Found:
    """The images most like one of the collection or an uploaded one."""
    image = _one(desk, asks)
    whole = desk.collection
    return Found(whole.about(image), tuple(by_image(whole, image, count=asks.count)))


def places(desk: Desk, asks: AsksRegion) -> FoundPlaces:
    """The places of other images most like a box in one: the same part of other things."""
    image, box = _one(desk, asks), asks.box
    if box is None:
        raise Unasked("a box is missing: left, top, right and bottom")
    whole = desk.collection
    return FoundPlaces(whole.about(image), tuple(by_region(whole, image, box, count=asks.count)))


def coloured(desk: Desk, asks: AsksParts) -> Coloured:
    """Main directions of the patches of several images as colours: equal parts in equal colours, the background grey."""
    several: list[Asked] = [desk.row(row) for row in asks.numbers]
    if asks.upload is not None:
        several.insert(0, desk.upload(asks.upload))
    if not several:
        raise Unasked("images are missing: rows=1,2,3 or upload")
    return Coloured(tuple(parts_of(desk.collection, several)))


def matched(desk: Desk, asks: AsksMatch) -> Matching:
    """Patches of two images that belong together."""
    image = _one(desk, asks)
    if asks.other is None:
        raise Unasked("the second image is missing: other")
    return matching(desk.collection, image, desk.row(asks.other), lines=asks.lines)


def copies(desk: Desk, asks: AsksGroups) -> CopiesPage:
    """Groups of near copies in the collection, the largest first."""
    whole = desk.collection
    found = desk.jobs.need(
        "copies", "Looking for near copies", lambda job: near_copies(whole, count=_MOST_GROUPS, tell=job.tick)
    )
    pages = max(1, -(-len(found.groups) // _GROUPS_A_PAGE))
    some = found.groups[(asks.page - 1) * _GROUPS_A_PAGE : asks.page * _GROUPS_A_PAGE]
    return CopiesPage(some, asks.page, pages, found.total, found.images, found.threshold)


def odd(desk: Desk, asks: AsksOutliers) -> Outliers:
    """The images that are least like any other."""
    whole = desk.collection
    found = desk.jobs.need(
        "outliers", "Looking for outliers", lambda job: outliers(whole, count=MOST_OUTLIERS, tell=job.tick)
    )
    return replace(found, images=found.images[: asks.count])


def plane(desk: Desk, asks: AsksMap) -> Plane:
    """The collection in the plane: like images lie together."""
    whole = desk.collection
    found = desk.jobs.need("map", "Laying out the map", lambda job: map_of(whole, tell=job.tick))
    kinds = Counter(name for point in found.points if (name := _kind(point, asks.colour)))
    common = [name for name, _ in kinds.most_common(_COLOURS)]
    place = {name: number for number, name in enumerate(common)}
    even = np.unique(np.linspace(0, len(found.points) - 1, asks.points).round().astype(int)).tolist()
    dots = tuple(
        Dot(p.row, p.x, p.y, place.get(name := _kind(p, asks.colour), -1), name)
        for p in map(found.points.__getitem__, even)
    )
    return Plane(dots, tuple(Kind(name, kinds[name]) for name in common), found.clusters, found.of)


def contained(desk: Desk, asks: AsksImage) -> Membership:
    """Whether an image, or a near copy of it, is among those that the backbone was trained on."""
    image = _one(desk, asks)
    if desk.training is None:
        raise Absent(
            "which images the backbone was trained on is not known: start with manifest=, a run or its manifest."
        )
    return membership(desk.collection, image, desk.training)


def _one(desk: Desk, asks: AsksImage) -> Asked:
    image = desk.asked(asks)
    if image is None:
        raise Unasked("an image is missing: row or upload")
    return image


def _kind(point: Point, colour: str) -> str:
    """What a point counts as; empty where that is not known."""
    if colour == "cluster":
        return f"cluster {point.cluster}"
    if colour == "reason":
        return point.reason or ""
    return point.label_name or ("" if point.label is None else str(point.label))


@dataclass(frozen=True, slots=True)
class View:
    """A page and its JSON twin."""

    path: str
    """Of the page; that of its twin is ``api``."""
    api: str
    title: str
    asks: type[Asks]
    gives: Any
    answer: Callable[[Desk, Any], Any]
    template: str


VIEWS: Sequence[View] = (
    View("/", "/api/collection", "Collection", AsksList, Listing, listing, "listing.html"),
    View("/search", "/api/search", "Search", AsksSearch, Found, like, "search.html"),
    View("/region", "/api/region", "Region", AsksRegion, FoundPlaces, places, "region.html"),
    View("/parts", "/api/parts", "Parts", AsksParts, Coloured, coloured, "parts.html"),
    View("/match", "/api/match", "Match", AsksMatch, Matching, matched, "match.html"),
    View("/copies", "/api/copies", "Near copies", AsksGroups, CopiesPage, copies, "copies.html"),
    View("/outliers", "/api/outliers", "Outliers", AsksOutliers, Outliers, odd, "outliers.html"),
    View("/map", "/api/map", "Map", AsksMap, Plane, plane, "map.html"),
    View("/contains", "/api/contains", "Training set", AsksImage, Membership, contained, "contains.html"),
)  # fmt: skip
