"""ADE20K of the scene parsing challenge (Zhou et al. 2017), ``ADEChallengeData2016``: 150 classes of pixels.

``images/{training,validation}/*.jpg``, masks of the same name in ``annotations/…/*.png``, in which 0 is what belongs to no
class and classes begin with 1: here that is 255, and they begin with 0. ``objectInfo150.txt`` beside them gives their names.
"""

from __future__ import annotations

import re

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.layouts.masks import Renumbered
from dinoforge.data.sources.source import Source

_PLACES = ("", "ADEChallengeData2016/")
OWN = re.compile(r"(?:ADEChallengeData2016/)?(?:images/(?:training|validation)/|annotations)")
"""How the paths of its images begin."""
_SPLITS = {"training": "train", "validation": "val"}
_CLASSES = 150
_NAMES = "objectInfo150.txt"
_IMAGE = re.compile(r"images/(training|validation)/(ADE_(?:train|val)_\d{8})\.jpg")


def _place(folder: Folder) -> str | None:
    return next(
        (
            place
            for place in _PLACES
            if folder.has(f"{place}images/validation/ADE_val_00000001.jpg")
            or folder.has(f"{place}images/training/ADE_train_00000001.jpg")
        ),
        None,
    )


def fits(folder: Folder) -> bool:
    """Whether there are images that are called as in the set, and annotations."""
    place = _place(folder)
    return place is not None and any(name.startswith(f"{place}annotations/") for name in folder.files)


def opened(folder: Folder) -> Source:
    """Train and val with ``mask``.

    Raises:
        DataError: No such image, an image without its mask, or a list of names that is damaged.
    """
    place, found = _place(folder) or "", Gathered(folder)
    for name in folder.files:
        match = _IMAGE.fullmatch(name.removeprefix(place)) if name.startswith(place) else None
        if match:
            mask = f"{place}annotations/{match.group(1)}/{match.group(2)}.png"
            found.add(name, by="", split=_SPLITS[match.group(1)])
            found.add_truth("mask", mask, by="")
    return Renumbered(found.source(), {number + 1: number for number in range(_CLASSES)}, _names(folder, place))


def _names(folder: Folder, place: str) -> list[str]:
    """The first name of every class, where they are listed.

    Raises:
        DataError: Another number of classes.
    """
    by = f"{place}{_NAMES}"
    if not folder.has(by):
        return [str(number) for number in range(_CLASSES)]
    names = [row[-1].split(",")[0].strip() for row in folder.rows(by, fields=5, mark="\t")][1:]
    if len(names) != _CLASSES:
        raise folder.error(by, f"names {len(names)} classes; they are {_CLASSES}")
    return names
