"""Cityscapes (Cordts et al. 2016): street scenes of many cities, 19 classes of pixels that are evaluated.

``leftImg8bit/{train,val,test}/<city>/<city>_…_leftImg8bit.png``; masks in ``gtFine/…/…_gtFine_labelTrainIds.png`` (19 classes
from 0) where these were made, else in ``…_gtFine_labelIds.png``, whose numbers of the 19 classes are those of the published
table; all others are ignored. What is true of the test images is kept back, so these have no mask.
"""

from __future__ import annotations

import re

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.layouts.masks import Renumbered
from dinoforge.data.sources.source import Source

CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light", 20: "traffic sign",
    21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Number in ``labelIds`` and name of every class, in the order of the numbers they are trained by."""
_IMAGE = re.compile(r"(?:(.*)/)?leftImg8bit/(train|val|test)/([^/]+)/(\3_[^/]+)_leftImg8bit\.png")
OWN = re.compile(r"(?i:[^/]*cityscapes[^/]*/)?(?:leftImg8bit|rightImg8bit|gt[A-Z]|disparity)")
"""How the paths of its images begin."""


def fits(folder: Folder) -> bool:
    """Whether there are images that lie and are called as in the set, and masks."""
    masks = any("/gtFine/" in f"/{name}" for name in folder.files)
    return masks and any(_IMAGE.fullmatch(name) for name in folder.files)


def opened(folder: Folder) -> Source:
    """Train, val and test; the first two with ``mask``.

    Raises:
        DataError: No such image, or one of train or val without its mask.
    """
    found, images = Gathered(folder), [match for name in folder.files if (match := _IMAGE.fullmatch(name))]
    folder.used.update(name for name in folder.files if "/gtFine/" in f"/{name}")  # colours and instances too
    trained = any(name.endswith("_gtFine_labelTrainIds.png") for name in folder.files)
    ending = "labelTrainIds" if trained else "labelIds"
    for match in images:
        before, split, city, stem = match.groups()
        mask = f"{f'{before}/' if before else ''}gtFine/{split}/{city}/{stem}_gtFine_{ending}.png"
        found.add(match.group(), by="", split=split)
        if split != "test":
            found.add_truth("mask", mask, by="")
    numbers = {number if trained else of_file: number for number, of_file in enumerate(CLASSES)}
    return Renumbered(found.source(), numbers, [*CLASSES.values()])
