"""iNaturalist 2018 and 2021 (Van Horn et al. 2018, 2021): ``train2018.json`` or ``train.json``, the same of val.

The files are those of COCO: ``images`` with ``id`` and ``file_name``, ``annotations`` with ``image_id`` and ``category_id``.
Of 2021, ``train_mini.json`` is read where the whole training set is not there. Of 2018, names of species are published in a
``categories.json`` of its own; without it a class is called by its number.
"""

from __future__ import annotations

import re

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_SPECIES = re.compile(r"(?:train|train_mini|val)/\d{5}_[A-Z]")
"""A folder of 2021: many a set has a train.json, but not 00000_Animalia_…."""


def fits_2018(folder: Folder) -> bool:
    """Whether the folder has the form of 2018."""
    lists = folder.has("train2018.json", "val2018.json")
    return lists and any(name.startswith("train_val2018/") for name in folder.files)


def fits_2021(folder: Folder) -> bool:
    """Whether the folder has the form of 2021."""
    lists = folder.has("val.json") and (folder.has("train.json") or folder.has("train_mini.json"))
    return lists and any(_SPECIES.match(name) for name in folder.files)


def opened_2018(folder: Folder) -> Source:
    """8,142 species, train and val.

    Raises:
        DataError: See ``Gathered``, or an image has no annotation or two.
    """
    return _opened(folder, train="train2018.json", val="val2018.json")


def opened_2021(folder: Folder) -> Source:
    """10,000 species, train and val.

    Raises:
        DataError: As ``opened_2018``.
    """
    return _opened(folder, train=folder.first("train.json", "train_mini.json"), val="val.json")


def _opened(folder: Folder, **lists: str) -> Source:
    found = Gathered(folder, _species(folder, lists["train"]))
    for split, by in lists.items():
        labels: dict[int, int] = {}
        for one in folder.entries(by, "image_id", "category_id", within="annotations"):
            image = folder.whole(by, one["image_id"])
            if image in labels:
                raise folder.error(by, f"annotates image {image} twice")
            labels[image] = folder.whole(by, one["category_id"])
        for one in folder.entries(by, "id", "file_name", within="images"):
            image = folder.whole(by, one["id"])
            if image not in labels:
                raise folder.error(by, f"has no annotation of {one['file_name']}")
            found.add(str(one["file_name"]), by=by, split=split, label=labels[image])
    return found.source()


def _species(folder: Folder, by: str) -> list[str]:
    """Names of the classes in the order of their numbers.

    Raises:
        DataError: A number is none, below 0, or too great.
    """
    by = "categories.json" if folder.has("categories.json") else by
    entries = folder.entries(by, "id", within=None if by == "categories.json" else "categories")
    names = {folder.class_number(by, one["id"]): str(one.get("name", one["id"])) for one in entries}
    if min(names, default=0) < 0:
        raise folder.error(by, f"numbers a category {min(names)}; they are numbered from 0")
    return [names.get(number, "") for number in range(max(names, default=-1) + 1)]
