"""CUB-200-2011 (Wah et al. 2011): ``images/<class>/<file>``, tables of image numbers: ``images.txt`` and beside it."""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return folder.has("images.txt", "train_test_split.txt", "image_class_labels.txt") and "images" in folder.top


def _table(folder: Folder, name: str) -> dict[str, str]:
    """What a table says of each number.

    Raises:
        DataError: It says it twice.
    """
    found: dict[str, str] = {}
    for number, value in folder.rows(name, fields=2):
        if number in found:
            raise folder.error(name, f"names {number} twice")
        found[number] = value
    return found


def opened(folder: Folder) -> Source:
    """200 species from 1, with the names of ``classes.txt`` (``001.Black_footed_Albatross``).

    Raises:
        DataError: See ``Gathered``, or a table knows nothing of an image.
    """
    names = _table(folder, "classes.txt")
    numbers = [folder.whole("classes.txt", number) for number in names]
    if numbers != [*range(1, len(numbers) + 1)]:
        raise folder.error("classes.txt", "does not number its classes 1, 2, 3 …")
    found = Gathered(folder, [*names.values()], first=1)
    tables = {name: _table(folder, name) for name in ("image_class_labels.txt", "train_test_split.txt")}
    for image, file in _table(folder, "images.txt").items():
        for name, table in tables.items():
            if image not in table:
                raise folder.error(name, f"says nothing of image {image}, {file}")
        label, train = (folder.whole(name, table[image]) for name, table in tables.items())
        split = "train" if train else "test"
        found.add(f"images/{file}", by="images.txt", split=split, label=label, labelled_by="image_class_labels.txt")
    return found.source()
