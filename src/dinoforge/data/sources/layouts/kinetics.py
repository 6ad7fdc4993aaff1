"""Kinetics-400 (Kay et al. 2017): lists ``annotations/train.csv``, ``val.csv``, ``test.csv``, and what there is of its videos.

A clip is called ``<youtube id>_<start>_<end>.mp4``, its times in seconds as six digits. It is looked for by that name
anywhere in the folder. Many videos are no longer on the web, so that some are missing in every copy: they are counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping

from dinoforge.base.log import say
from dinoforge.data.film import VIDEOS
from dinoforge.data.sources.clips import Films
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.options import shown

_SPLITS = {"train": "train", "val": "val", "validate": "val", "test": "test"}
_COLUMNS = ("youtube_id", "time_start", "time_end")


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    lists = folder.has("annotations/train.csv") and not folder.names.isdisjoint(
        {"annotations/val.csv", "annotations/validate.csv"}
    )
    return lists and any(folder.ending(VIDEOS))


def opened(folder: Folder) -> Films:
    """The clips that are there; classes in the order of their names. How many are missing is said.

    Raises:
        DataError: See ``Gathered``; or a list lacks a column, or not one of its clips is there.
    """
    rows = list(_rows(folder))
    found = Gathered(folder, sorted({label for *_, label in rows} - {""}))
    there, missing = _videos(folder), 0
    for by, split, name, label in rows:
        files = there.get(name, [])
        missing += not files
        if files:  # a copy of a clip may lie in another split's folder too
            file = next((file for file in files if file.startswith(f"{split}/")), files[0])
            found.add(file, by=by, split=split, label=label or None)
    if missing:
        say(f"{shown(folder.address)}: {missing:,} of the {len(rows):,} videos of the lists are not there.")
    return Films(found.source())


def _videos(folder: Folder) -> Mapping[str, list[str]]:
    """Video files by their names without folder and suffix."""
    found = dict[str, list[str]]()
    for file in folder.files:
        stem, dot, suffix = file.rpartition("/")[2].rpartition(".")
        if dot + suffix.lower() in VIDEOS:
            found.setdefault(stem, []).append(file)
    return found


def _rows(folder: Folder) -> Iterator[tuple[str, str, str, str]]:
    """List, split, name and class (empty: unknown) of every clip.

    Raises:
        DataError: A list is no table, or a row says no clip.
    """
    for name, split in _SPLITS.items():
        by = f"annotations/{name}.csv"
        if not folder.has(by):
            continue
        try:
            rows = list(csv.DictReader(folder.lines(by)))
        except csv.Error as error:
            raise folder.error(by, f"cannot be read as a table: {error}") from None
        for row in rows:
            lost = next((column for column in _COLUMNS if not row.get(column)), None)
            if lost is not None:
                raise folder.error(by, f"has a row without {lost!r}")
            start, end = (folder.whole(by, row[column]) for column in _COLUMNS[1:])
            yield by, split, f"{row['youtube_id']}_{start:06}_{end:06}", row.get("label") or ""
