"""FGVC-Aircraft 2013b (Maji et al. 2013): ``data/images/0034309.jpg``, lists ``data/images_variant_train.txt`` and the like."""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_SPLITS = ("train", "val", "test")


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return folder.has("data/variants.txt", *(f"data/images_variant_{split}.txt" for split in _SPLITS))


def opened(folder: Folder) -> Source:
    """100 variants in the order of ``variants.txt``; the names have blanks in them (``Cessna 172``).

    Raises:
        DataError: See ``Gathered``.
    """
    found = Gathered(folder, folder.lines("data/variants.txt"))
    for split in _SPLITS:
        by = f"data/images_variant_{split}.txt"
        for number, variant in folder.rows(by, fields=2):
            found.add(f"data/images/{number}.jpg", by=by, split=split, label=variant)
    return found.source()
