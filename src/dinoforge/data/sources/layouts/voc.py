"""Pascal VOC 2007 classification (Everingham et al. 2010): ``JPEGImages/``, lists ``ImageSets/Main/<class>_trainval.txt``.

An image shows several classes: 1 = it does, -1 = it does not, 0 = only such as are hard to recognise (``difficult``), which a
scoring of that class passes over. The official train and val are told apart where their lists are there.
"""

from __future__ import annotations

import re

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_PLACES = ("", "VOC2007/", "VOCdevkit/VOC2007/")
_LIST = "ImageSets/Main/"
OWN = re.compile(r"(?:(?:VOCdevkit/)?VOC2007/)?(?:JPEGImages/|Segmentation)")
"""How the paths of its images begin."""
_FIRST = ("000001", "000005")
"""The first images of test and trainval; those of other years are called otherwise."""


def _place(folder: Folder) -> str | None:
    return next((place for place in _PLACES if folder.has(f"{place}{_LIST}aeroplane_trainval.txt")), None)


def fits(folder: Folder) -> bool:
    """Whether this is the folder of the year, or one that holds it and no other year."""
    place = _place(folder)
    if place is None or not any(folder.has(f"{place}JPEGImages/{image}.jpg") for image in _FIRST):
        return False
    others = re.compile(rf"{place.removesuffix('VOC2007/')}VOC(?!2007)\d{{4}}/")
    return not any(others.match(name) for name in folder.files)


def opened(folder: Folder) -> Source:
    """Columns ``labels`` and ``difficult``: names of classes, one a line. There is no ``label``.

    Raises:
        DataError: See ``Gathered``, or a list is damaged.
    """
    place = _place(folder) or ""
    found = Gathered(folder)
    for published in ("trainval", "test"):
        whose = re.compile(rf"{place}{_LIST}([a-z]+)_{published}\.txt")
        lists = {match.group(1): name for name in folder.files if (match := whose.fullmatch(name))}
        shows: dict[str, tuple[list[str], list[str]]] = {}
        for of_class, by in lists.items():
            for image, mark in _marks(folder, by).items():
                labels, difficult = shows.setdefault(image, ([], []))
                if mark != "-1":
                    (labels if mark == "1" else difficult).append(of_class)
        split_of = _splits(folder, place) if published == "trainval" else {}
        for image, (labels, difficult) in shows.items():
            found.add(
                f"{place}JPEGImages/{image}.jpg", by=next(iter(lists.values())),
                split=split_of.get(image, "test" if published == "test" else "train"),
                labels="\n".join(labels), difficult="\n".join(difficult),
            )  # fmt: skip
    return found.source()


def _marks(folder: Folder, by: str) -> dict[str, str]:
    """What a list says of each image: 1, 0 or -1.

    Raises:
        DataError: It says anything else, or says it twice.
    """
    found: dict[str, str] = {}
    for image, mark in folder.rows(by, fields=2):
        if mark not in {"1", "0", "-1"}:
            raise folder.error(by, f"marks {image} by {mark!r}; it takes 1, 0 or -1")
        if image in found:
            raise folder.error(by, f"names {image} twice")
        found[image] = mark
    return found


def _splits(folder: Folder, place: str) -> dict[str, str]:
    """Which of trainval is val."""
    name = f"{place}{_LIST}val.txt"
    return dict.fromkeys(folder.lines(name), "val") if folder.has(name) else {}
