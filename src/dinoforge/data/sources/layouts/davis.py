"""DAVIS 2017 (Pont-Tuset et al. 2017): ``JPEGImages/480p/SEQUENCE/``, ``Annotations/480p/SEQUENCE/``, ``ImageSets/2017/``.

A row is a frame, with the columns ``clip`` (the sequence) and ``frame``; its mask is a palette whose index is the object.
"""

from __future__ import annotations

import re

import numpy as np

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.paths import Paths, stamps_of
from dinoforge.data.sources.source import Source

_PLACES = ("", "DAVIS/")
OWN = re.compile(r"(?:DAVIS/)?(?:JPEGImages/|Annotations)")
"""How the paths of its images begin."""
_LISTS = "ImageSets/2017/"
_SPLITS = ("train", "val", "test-dev")
_FRAME = re.compile(r"(JPEGImages|Annotations)/480p/([^/]+)/(\d+)\.(?:jpg|png)")


def _place(folder: Folder) -> str | None:
    lists = {place: [f"{place}{_LISTS}{split}.txt" for split in _SPLITS] for place in _PLACES}
    return next((place for place in _PLACES if not folder.names.isdisjoint(lists[place])), None)


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    place = _place(folder)
    return place is not None and any(name.startswith(f"{place}JPEGImages/480p/") for name in folder.files)


def opened(folder: Folder) -> Source:
    """Frames of the sequences that the lists name, in their order. Of test-dev only first masks are public.

    Raises:
        DataError: See ``Gathered``, or a sequence has no frame.
    """
    place = _place(folder) or ""
    frames = dict[str, set[str]]()
    for name in folder.files:
        match = _FRAME.fullmatch(name.removeprefix(place)) if name.startswith(place) else None
        if match:
            frames.setdefault(match.group(2), set()).add(match.group(3))
    found, masks = Gathered(folder), list[str]()
    for split in _SPLITS:
        by = f"{place}{_LISTS}{split}.txt"
        for clip in folder.lines(by) if folder.has(by) else []:
            if clip not in frames:
                raise folder.error(by, f"names the sequence {clip}, which has no frame")
            for frame in sorted(frames[clip]):
                image, mask = (
                    f"{place}JPEGImages/480p/{clip}/{frame}.jpg",
                    f"{place}Annotations/480p/{clip}/{frame}.png",
                )
                found.add(
                    image, by=mask if folder.has(mask) else by, split=split, clip=clip, frame=int(frame),
                )  # fmt: skip
                masks.append(mask if folder.has(mask) else "")
    return _source(folder, found, masks)


def _source(folder: Folder, found: Gathered, masks: list[str]) -> Source:
    """The frames with their masks.

    Raises:
        DataError: See ``Gathered``.
    """
    found.check()
    folder.used.update(masks)
    columns = found.columns()
    columns["clip"] = columns["clip"].astype(np.str_)
    return Paths(
        shown(folder.address), folder.address, columns["id"], columns=columns, options=folder.options,
        truths={"mask": np.asarray(masks, np.str_)}, stamps=stamps_of(folder.stamps, columns["id"].tolist()),
    )  # fmt: skip
