"""Test sets of ImageNet's classes: -V2 (Recht et al. 2019), -A, -R (Hendrycks et al. 2021), -Sketch (Wang et al. 2019).

V2 has a folder a class, called by its number in the order of the wnids: these numbers are the labels as they stand, and agree
with those of ImageNet-1k. The others have folders of wnids, and labels by name: opened beside ImageNet-1k they take
its numbers.
"""

from __future__ import annotations

import re

from dinoforge.data.decode import SUFFIXES
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.layouts.imagenet import WNID
from dinoforge.data.sources.source import Source

_CLASSES = 1000
_README = "README.txt"
_NAMES = {"imagenet-a", "imagenet-r", "imagenet-sketch", "sketch"}
_FEW = 200
"""Classes of -A and -R. A training set of other wnids may have a README too; -Sketch has all 1,000, told by its files."""


def fits_v2(folder: Folder) -> bool:
    """Whether there are folders 0 to 999 and no other."""
    return len(folder.top) == _CLASSES and folder.top == {str(number) for number in range(_CLASSES)}


def opened_v2(folder: Folder) -> Source:
    """All of it is for testing.

    Raises:
        DataError: See ``Gathered``, or a folder is no number of a class.
    """
    found = Gathered(folder, _CLASSES)
    for file, of_class in _images(folder):
        found.add(file, by=of_class, split="test", label=folder.whole(of_class, of_class))
    return found.source()


def fits_wnids(folder: Folder) -> bool:
    """Whether all folders are wnids, and what tells them from a training set is there too.

    That is the folder's own name, a ``README.txt`` beside 200 of them, or files called ``sketch_0.JPEG`` in all 1,000.
    """
    if len(folder.top) < 2 or not all(WNID.fullmatch(name) for name in folder.top):
        return False
    if folder.own_name.lower() in _NAMES or (folder.has(_README) and len(folder.top) == _FEW):
        return True
    return len(folder.top) == _CLASSES and all("/" not in name or "/sketch_" in name for name in folder.files)


def opened_wnids(folder: Folder) -> Source:
    """All of it is for testing; the names in a ``README.txt`` are the column ``words``.

    Raises:
        DataError: See ``Gathered``.
    """
    found = Gathered(folder, sorted(name for name in folder.top))
    lines = folder.lines(_README) if folder.has(_README) else []
    matches = [re.fullmatch(rf"({WNID.pattern})\s+(\S.*)", line) for line in lines]
    words = {match.group(1): match.group(2) for match in matches if match}
    for file, of_class in _images(folder):
        facts = {"words": words[of_class]} if of_class in words else {}
        found.add(file, by=of_class, split="test", label=of_class, **facts)
    source = found.source()
    source.by_name = frozenset({"label"})
    return source


def _images(folder: Folder) -> list[tuple[str, str]]:
    """Image files in the folders of the root, each with its folder."""
    parts = [(name, name.split("/")) for name in folder.files]
    return [
        (name, path[0]) for name, path in parts
        if len(path) == 2 and f".{name.rpartition('.')[2].lower()}" in SUFFIXES
    ]  # fmt: skip
