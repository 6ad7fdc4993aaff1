"""SPair-71k (Min et al. 2019): ``PairAnnotation/{trn,val,test}/*.json``, ``JPEGImages/CATEGORY/``.

A row is an image. Its pairs with others are in the column ``pairs``, with the box of the object in the other one, as
``evaluate/keypoints.py`` reads them. The images of the three splits are different ones.
"""

from __future__ import annotations

import json
import re
from typing import Any

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_PLACES = ("", "SPair-71k/")
OWN = re.compile(r"(?:SPair-71k/)?(?:JPEGImages|Segmentation)/")
"""How the paths of its images begin."""
_PAIRS = "PairAnnotation/"
_SPLITS = {"trn": "train", "val": "val", "test": "test"}
_KEYS = ("category", "src_imname", "trg_imname", "src_kps", "trg_kps", "trg_bndbox")


def _place(folder: Folder) -> str | None:
    starts = {place: tuple(f"{place}{_PAIRS}{split}/" for split in _SPLITS) for place in _PLACES}
    return next((place for place in _PLACES if any(name.startswith(starts[place]) for name in folder.files)), None)


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    place = _place(folder)
    return place is not None and any(name.startswith(f"{place}JPEGImages/") for name in folder.files)


def opened(folder: Folder) -> Source:
    """Images by category and name; the categories are the classes.

    Raises:
        DataError: See ``Gathered``, or the file of a pair is damaged, or an image is in two splits.
    """
    place = _place(folder) or ""
    splits, pairs = dict[str, tuple[str, str, str]](), dict[str, list[str]]()
    for published, split in _SPLITS.items():
        start = f"{place}{_PAIRS}{published}/"
        for by in sorted(name for name in folder.files if name.startswith(start) and name.endswith(".json")):
            one = _pair(folder, by)
            ids = [f"{place}JPEGImages/{one['category']}/{one[name]}" for name in ("src_imname", "trg_imname")]
            for image in ids:
                if splits.setdefault(image, (split, one["category"], by))[0] != split:
                    raise folder.error(by, f"names {image}, which is in the split {splits[image][0]} too")
            points = [[*a, *b] for a, b in zip(one["src_kps"], one["trg_kps"], strict=True)]
            pairs.setdefault(ids[0], []).append(
                json.dumps({"with": ids[1], "points": points, "box": one["trg_bndbox"]})
            )
    found = Gathered(folder, sorted({category for _, category, _ in splits.values()}))
    for image, (split, category, by) in sorted(splits.items()):
        found.add(image, by=by, split=split, label=category, pairs="\n".join(pairs.get(image, [])))
    return found.source()


def _pair(folder: Folder, by: str) -> dict[str, Any]:
    """What a file says of a pair.

    Raises:
        DataError: Not in the published form.
    """
    one = folder.json(by)
    lost = next((key for key in _KEYS if not isinstance(one, dict) or key not in one), None)
    if lost is not None:
        raise folder.error(by, f"has no {lost!r}")
    for key in _KEYS[:3]:
        if not isinstance(one[key], str):
            raise folder.error(by, f"has {key!r} {str(one[key])[:40]!r}, which takes a text")
    points = [one[key] for key in ("src_kps", "trg_kps")]
    if not all(isinstance(side, list) and all(isinstance(p, list) and len(p) == 2 for p in side) for side in points):
        raise folder.error(by, "has keypoints that are not lists of x and y")
    if len(points[0]) != len(points[1]):
        raise folder.error(by, f"has {len(points[0])} keypoints in the one image and {len(points[1])} in the other")
    return dict(one)
