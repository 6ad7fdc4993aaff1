"""ImageNet-1k (Russakovsky et al. 2015) with the lists that are published beside it.

``train/<wnid>/*.JPEG``; ``val/`` by class in the same way, or flat with its truth in Kaggle's ``LOC_val_solution.csv`` or in
the devkit (``ILSVRC2012_validation_ground_truth.txt`` with ``meta.mat``, in any folder); without either it has no labels.
Classes are numbered in the order of their wnids and called by them, so that they agree
with any other folder of wnids; the words of ``LOC_synset_mapping.txt`` or ``words.txt`` are the column ``words``.

ImageNet-ReaL (Beyer et al. 2020): ``real.json`` beside it, a list of classes for each validation image in the order of their
numbers; it is the column ``real``, numbers one a line, and empty where no class fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dinoforge.data.decode import SUFFIXES
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

WNID = re.compile(r"n\d{8}")
"""The name of a class in WordNet: n and its offset."""
_PLACES = ("", "ILSVRC/Data/CLS-LOC/")
"""Where train and val lie: as most have it, and as Kaggle packs it."""
_KAGGLE, _MAPPING, _WORDS, _REAL = "LOC_val_solution.csv", "LOC_synset_mapping.txt", "words.txt", "real.json"
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_FLAT = "ILSVRC2012_val_"
"""How the name of a validation image begins; its number follows."""
Row = tuple[str, str, str]
"""File, split, wnid; no wnid of a flat file."""


def fits(folder: Folder) -> bool:
    """Whether there are folders of wnids and a list that says more than they do, or flat validation images."""
    images = any(folder.has(f"{place}val/{_FLAT}00000001.JPEG") for place in _PLACES)
    lists = any(folder.has(name) for name in (_MAPPING, _REAL, _KAGGLE))
    return images or (lists and any(_is_told(folder, place) for place in _PLACES))


def _is_told(folder: Folder, place: str) -> bool:
    """Whether the names of the images are those of ImageNet: many a set has a train and a val."""
    return any(wnid or name.startswith(f"{place}val/{_FLAT}") for name, _, wnid in _rows_of(folder, place))


def _rows_of(folder: Folder, place: str) -> Iterator[Row]:
    """The images of train and val below a folder."""
    split_and_class = re.compile(rf"{re.escape(place)}(train|val)/(?:(n\d{{8}})/)?[^/]+(\.[A-Za-z]+)")
    for name in folder.files:
        match = split_and_class.fullmatch(name)
        if match and match.group(3).lower() in SUFFIXES and (match.group(2) or match.group(1) == "val"):
            yield name, match.group(1), match.group(2) or ""


def opened(folder: Folder) -> Source:
    """Train and val.

    Raises:
        DataError: See ``Gathered``, or the list of truths says nothing of a flat validation image.
    """
    rows = next((rows for place in _PLACES if (rows := [*_rows_of(folder, place)])), [])
    words = _words(folder)
    by = _KAGGLE if folder.has(_KAGGLE) else next((name for name in folder.files if name.endswith(_DEVKIT)), "")
    truth = _truth(folder, by) if any(not wnid for _, _, wnid in rows) else {}
    mapped = [*words] if folder.has(_MAPPING) else []
    found = Gathered(folder, sorted({*mapped, *truth.values(), *(wnid for _, _, wnid in rows if wnid)}))
    real = _real(folder, found.classes)
    for name, split, of_folder in rows:
        stem = name.rpartition("/")[2].rpartition(".")[0]
        wnid = of_folder or truth.get(stem, "")
        if by and not wnid:
            raise folder.error(by, f"says nothing of {name}")
        facts = {"words": words[wnid]} if wnid in words else {}
        facts |= {"real": real.get(stem, "")} if split == "val" and real else {}
        found.add(name, by=by, split=split, label=wnid or None, **facts)
    source = found.source()
    # of a part of the classes too, which then has the numbers of the whole
    source.by_name = frozenset({"label"} & source.columns.keys())
    return source


def _words(folder: Folder) -> dict[str, str]:
    """What a class is called, by wnid."""
    name = next((name for name in (_MAPPING, _WORDS) if folder.has(name)), None)
    return {row[0]: row[1] for row in folder.rows(name, fields=2)} if name else {}


def _truth(folder: Folder, by: str) -> dict[str, str]:
    """Of each validation image without its ending, the wnid; nothing where there is no list.

    Raises:
        DataError: The list is damaged.
    """
    if not by:
        return {}
    if by == _KAGGLE:
        rows = folder.rows(by, fields=2, mark=",")
        return {image: answer.split()[0] for image, answer in rows if WNID.match(answer)}
    meta = by.removesuffix(_DEVKIT) + "meta.mat"
    numbers, wnids = folder.fields(meta, "synsets", "ILSVRC2012_ID", "WNID")
    wnid_of = {folder.whole(meta, number): str(wnid) for number, wnid in zip(numbers, wnids, strict=True)}
    found = {}
    for row, line in enumerate(folder.lines(by), start=1):
        wnid = wnid_of.get(folder.whole(by, line))
        if wnid is None:
            raise folder.error(by, f"gives image {row} the class {line}, which {meta} does not have")
        found[f"{_FLAT}{row:08}"] = wnid
    return found


def _real(folder: Folder, classes: int) -> dict[str, str]:
    """Of each validation image without its ending, its classes.

    Raises:
        DataError: No list of lists, or a class that is none.
    """
    if not folder.has(_REAL):
        return {}
    held = folder.json(_REAL)
    if not isinstance(held, list) or not all(isinstance(one, list) for one in held):
        raise folder.error(_REAL, "holds no list of lists of classes")
    found = {}
    for row, labels in enumerate(held, start=1):
        numbers = [folder.whole(_REAL, label) for label in labels]
        odd = next((number for number in numbers if not 0 <= number < classes), None)
        if odd is not None:
            raise folder.error(_REAL, f"gives image {row} the class {odd}; the classes here are 0 to {classes - 1}")
        found[f"{_FLAT}{row:08}"] = "\n".join(map(str, numbers))
    return found
