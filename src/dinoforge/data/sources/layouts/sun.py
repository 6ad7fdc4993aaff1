"""SUN397 (Xiao et al. 2010): ``a/abbey/sun_….jpg``, lists ``Training_01.txt`` and ``Testing_01.txt``.

The lists come as an archive of their own, unpacked as ``Partitions/`` or among the rest. Of the ten partitions the first is
read: 50 training and 50 test images a class; the other images are in no list of it.
"""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_PLACES = ("Partitions/", "")
_LISTS = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return any(folder.has(*(place + name for name in _LISTS.values())) for place in _PLACES)


def _class(path: str) -> str:
    """``/a/apartment_building/outdoor`` -> ``apartment_building/outdoor``."""
    return path.strip("/").partition("/")[2]


def opened(folder: Folder) -> Source:
    """Classes in the order of ``ClassName.txt``, of their names where that is not there.

    Raises:
        DataError: See ``Gathered``.
    """
    lists = {split: folder.first(*(place + name for place in _PLACES)) for split, name in _LISTS.items()}
    lines = {split: [line.lstrip("/") for line in folder.lines(name)] for split, name in lists.items()}
    listed = next(
        (place + "ClassName.txt" for place in ("", *_PLACES, "SUN397/") if folder.has(place + "ClassName.txt")), None
    )
    named = {_class(line.rpartition("/")[0]) for part in lines.values() for line in part}
    found = Gathered(folder, [_class(line) for line in folder.lines(listed)] if listed else sorted(named))
    start = folder.prefix(line for part in lines.values() for line in part)
    for split, part in lines.items():
        for line in part:
            found.add(start + line, by=lists[split], split=split, label=_class(line.rpartition("/")[0]))
    return found.source()
