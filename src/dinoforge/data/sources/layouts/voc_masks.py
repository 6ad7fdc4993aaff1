"""Pascal VOC 2012 segmentation (Everingham et al. 2010): lists ``ImageSets/Segmentation/{train,val,test}.txt``, 20 classes and
what is none.

Masks are ``SegmentationClass/*.png``, whose palette's number is the class: 0 is the background, 255 the border of things and
ignored. With ``SegmentationClassAug/`` and ``trainaug.txt`` beside them (Hariharan et al. 2011), train is the larger list of
10,582 images, as published results have it. The true masks of the test images are kept back.
"""

from __future__ import annotations

import re

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.layouts.masks import Renumbered
from dinoforge.data.sources.source import Source

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PLACES = ("", "VOC2012/", "VOCdevkit/VOC2012/")
_LIST, _LARGER, _AUG = "ImageSets/Segmentation/", "trainaug", "SegmentationClassAug/"
OWN = re.compile(r"(?:(?:VOCdevkit/)?VOC2012/)?(?:JPEGImages/|Segmentation)")
"""How the paths of its images begin."""
_IMAGE = re.compile(r"20(?:0[789]|1[012])_\d{6}")
"""How images of 2012 are called; those of 2007 have a number alone."""


def _place(folder: Folder) -> str | None:
    return next((place for place in _PLACES if folder.has(f"{place}{_LIST}train.txt", f"{place}{_LIST}val.txt")), None)


def fits(folder: Folder) -> bool:
    """Whether this is the folder of the year, or one that holds it and no other year: lists, images called as in it, masks."""
    place = _place(folder)
    if place is None:
        return False
    others = re.compile(rf"{place.removesuffix('VOC2012/')}VOC(?!2012)\d{{4}}/")
    mask = re.compile(rf"{place}SegmentationClass/{_IMAGE.pattern}\.png")
    return any(mask.fullmatch(name) for name in folder.files) and not any(others.match(name) for name in folder.files)


def opened(folder: Folder) -> Source:
    """Train, val and, where it is listed, test; the first two with ``mask``.

    Raises:
        DataError: An image or a mask of a list is not there.
    """
    place, found = _place(folder) or "", Gathered(folder)
    folder.used.update(name for name in folder.files if name.startswith(f"{place}Segmentation"))  # of objects too
    larger = folder.has(f"{place}{_LIST}{_LARGER}.txt") and any(
        name.startswith(f"{place}{_AUG}") for name in folder.files
    )
    masks = {"train": _AUG if larger else "SegmentationClass/", "val": "SegmentationClass/"}
    for split in ("train", "val", "test"):
        by = f"{place}{_LIST}{_LARGER if larger and split == 'train' else split}.txt"
        for image in folder.lines(by) if folder.has(by) else []:
            found.add(f"{place}JPEGImages/{image}.jpg", by=by, split=split)
            if split in masks:
                found.add_truth("mask", f"{place}{masks[split]}{image}.png", by=by)
    return Renumbered(found.source(), {number: number for number in range(len(CLASSES))}, CLASSES)
