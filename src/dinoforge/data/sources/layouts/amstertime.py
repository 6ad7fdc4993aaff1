"""AmsterTime (Yildiz et al. 2022): archive photos in ``old/``, street views of the same places in ``new/``, one name a pair."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from dinoforge.data.decode import SUFFIXES
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.numbers import numbered
from dinoforge.data.sources.source import Source

_SPLITS = {"old": "query", "new": "gallery"}
_PAIRS = 1000
"""The set has 1,231; other photos of before and after are fewer."""


def _pairs(folder: Folder) -> dict[str, dict[str, str]]:
    """By folder, its images by the name without the ending."""
    found: dict[str, dict[str, str]] = {place: {} for place in _SPLITS}
    for name in folder.files:
        path = PurePosixPath(name)
        if str(path.parent) in found and path.suffix.lower() in SUFFIXES:
            found[str(path.parent)][path.stem] = name
    return found


def fits(folder: Folder) -> bool:
    """Whether there are these two folders alone and only pairs in them, and their number or the folder's name tells the set."""
    if folder.top != {*_SPLITS}:
        return False
    old, new = _pairs(folder).values()
    told = len(old) > _PAIRS or "amstertime" in folder.own_name.lower()
    return told and len(old) > 0 and old.keys() == new.keys()


def opened(folder: Folder) -> Source:
    """A group a pair: an old photo is asked, the new ones are searched.

    Raises:
        DataError: See ``Gathered``, or an image has no other of its name.
    """
    pairs = _pairs(folder)
    odd = sorted(pairs["old"].keys() ^ pairs["new"].keys())
    if odd:
        alone = pairs["old"].get(odd[0]) or pairs["new"][odd[0]]
        raise folder.error(
            alone, "has no other image of its name in " + ("new/" if alone.startswith("old/") else "old/")
        )
    found = Gathered(folder)
    number = numbered(np.asarray(sorted(pairs["old"]), dtype=np.str_)).tolist()
    for split, place in (("query", "old"), ("gallery", "new")):
        for group, stem in zip(number, sorted(pairs[place]), strict=True):
            found.add(pairs[place][stem], by=place, split=split, group=group, group_name=stem)
    return found.source()
