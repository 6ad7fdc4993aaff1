"""Food-101 (Bossard et al. 2014): ``images/<class>/<number>.jpg``, lists ``meta/train.txt`` and ``meta/test.txt``."""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return folder.has("meta/classes.txt", "meta/train.txt", "meta/test.txt") and "images" in folder.top


def opened(folder: Folder) -> Source:
    """750 training and 250 test images a class; the lists name them as ``apple_pie/1005649``.

    Raises:
        DataError: See ``Gathered``.
    """
    found = Gathered(folder, folder.lines("meta/classes.txt"))
    for split in ("train", "test"):
        by = f"meta/{split}.txt"
        for line in folder.lines(by):
            found.add(f"images/{line}.jpg", by=by, split=split, label=line.partition("/")[0])
    return found.source()
