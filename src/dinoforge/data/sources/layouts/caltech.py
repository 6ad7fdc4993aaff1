"""Caltech-101 (Fei-Fei et al. 2004): ``101_ObjectCategories/<class>/image_0001.jpg``.

The set publishes no split. As is usual 30 images of each class are for training and all others for testing, drawn by a fixed
seed of ours; the class ``BACKGROUND_Google`` is a class where it is there, for the 3,060 and 6,085 images of Kornblith et
al. 2019 are those of 102 classes.
"""

from __future__ import annotations

import numpy as np

from dinoforge.base.random import key
from dinoforge.data.decode import SUFFIXES
from dinoforge.data.order import permute
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_FOLDER = "101_ObjectCategories"
_BESIDE = {"Annotations", "BACKGROUND_Google"}
"""What else the set is published with."""
_TRAIN = 30


def fits(folder: Folder) -> bool:
    """Whether this is the folder of the classes, or one that holds it and no other images."""
    if folder.own_name == _FOLDER and "Faces_easy" in folder.top:
        return True
    alone = _FOLDER in folder.top and folder.top <= {_FOLDER, *_BESIDE}
    return alone and not any("/" not in name and _is_image(name) for name in folder.files)


def _is_image(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in SUFFIXES


def opened(folder: Folder) -> Source:
    """Classes in the order of their names; a class of 30 images or fewer has none for testing.

    Raises:
        DataError: See ``Gathered``.
    """
    start = f"{_FOLDER}/" if _FOLDER in folder.top else ""
    classes: dict[str, list[str]] = {}
    for name in folder.files:
        of_class, _, file = name.removeprefix(start).partition("/")
        if name.startswith(start) and file and "/" not in file and _is_image(file):
            classes.setdefault(of_class, []).append(name)
    found = Gathered(folder, sorted(classes))
    for of_class in sorted(classes):
        files = sorted(classes[of_class])
        drawn = permute(np.arange(min(_TRAIN, len(files))), images=len(files), seed=key(0, f"caltech101 {of_class}"))
        train = {*drawn.tolist()}
        for number, file in enumerate(files):
            found.add(file, by="", split="train" if number in train else "test", label=of_class)
    return found.source()
