"""Oxford-IIIT Pets (Parkhi et al. 2012): ``images/Abyssinian_1.jpg``, lists ``annotations/trainval.txt`` and ``test.txt``."""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_LISTS = {"train": "annotations/trainval.txt", "test": "annotations/test.txt"}


def fits(folder: Folder) -> bool:
    """Whether the folder has this form; others have a trainval and a test too, but no list of both."""
    return folder.has(*_LISTS.values(), "annotations/list.txt") and "images" in folder.top


def opened(folder: Folder) -> Source:
    """Lines are name, class from 1, species, breed; a class is called as its files without their number.

    Raises:
        DataError: See ``Gathered``, or a class has two names.
    """
    rows = [
        (split, by, name, folder.class_number(by, number))
        for split, by in _LISTS.items()
        for name, number, _ in folder.rows(by, fields=3)
    ]
    names: dict[int, str] = {}
    for _, by, name, number in rows:
        breed = name.rpartition("_")[0]
        if number < 1 or names.setdefault(number, breed) != breed:
            raise folder.error(by, f"gives {name} the class {number}, which is {names.get(number, 'below 1')}")
    found = Gathered(folder, [names.get(number, "") for number in range(1, max(names, default=0) + 1)], first=1)
    for split, by, name, number in rows:
        found.add(f"images/{name}.jpg", by=by, split=split, label=number)
    return found.source()
