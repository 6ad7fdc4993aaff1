"""Describable Textures (Cimpoi et al. 2014): ``images/<class>/<file>``, lists ``labels/train1.txt``, ``val1``, ``test1``.

Of the ten partitions that are published the first is read, as is usual.
"""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_SPLITS = ("train", "val", "test")


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return folder.has(*(f"labels/{split}1.txt" for split in _SPLITS)) and "images" in folder.top


def opened(folder: Folder) -> Source:
    """40 images a class and split; classes in the order of their names.

    Raises:
        DataError: See ``Gathered``.
    """
    lists = {split: folder.lines(f"labels/{split}1.txt") for split in _SPLITS}
    classes = sorted({line.partition("/")[0] for lines in lists.values() for line in lines})
    found = Gathered(folder, classes)
    for split, lines in lists.items():
        for line in lines:
            found.add(f"images/{line}", by=f"labels/{split}1.txt", split=split, label=line.partition("/")[0])
    return found.source()
