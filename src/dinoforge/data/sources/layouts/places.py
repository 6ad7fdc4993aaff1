"""Places205 (Zhou et al. 2014): lists ``trainvalsplit_places205/train_places205.csv`` and ``val_places205.csv``.

They are no CSV but lines of path and class from 0. The images are published as
``data/vision/torralba/deeplearning/images256/a/abbey/….jpg``; they are looked for at any place in the folder.
"""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_LISTS = {split: f"trainvalsplit_places205/{split}_places205.csv" for split in ("train", "val")}


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return folder.has(*_LISTS.values())


def opened(folder: Folder) -> Source:
    """A class is called as the folders of its images without the letter before them: ``abbey``.

    Raises:
        DataError: See ``Gathered``, or a class has two names.
    """
    rows, names = list[tuple[str, str, int]](), dict[int, str]()
    for split, by in _LISTS.items():
        for line in folder.lines(by):
            path, _, last = line.replace(",", " ").rpartition(" ")
            path, number = path.strip(), folder.class_number(by, last)
            name = path.partition("/")[2].rpartition("/")[0]
            if number < 0 or names.setdefault(number, name) != name:
                raise folder.error(by, f"gives {path} the class {number}, which is {names.get(number, 'below 0')}")
            rows.append((split, path, number))
    found = Gathered(folder, [names.get(number, "") for number in range(max(names, default=-1) + 1)])
    start = folder.prefix(path for _, path, _ in rows)
    for split, path, number in rows:
        found.add(start + path, by=_LISTS[split], split=split, label=number)
    return found.source()
