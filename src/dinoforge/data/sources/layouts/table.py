"""Every published form that is known. A new one is a file and a line here."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from dinoforge.base.errors import unknown
from dinoforge.base.log import say
from dinoforge.data.sources.layouts import (
    ade20k,
    aircraft,
    amstertime,
    caltech,
    cars,
    cifar,
    cityscapes,
    cub,
    davis,
    dtd,
    flowers,
    food,
    imagenet,
    imagenet_like,
    inaturalist,
    kinetics,
    kitti,
    landmarks,
    met,
    nyu,
    pets,
    places,
    something,
    spair,
    sun,
    ucf,
    voc,
    voc_masks,
)
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.source import Source

NONE = "none"
"""The name by which a folder is read as it lies."""


class Layout(NamedTuple):
    """The form that a set was published in."""

    title: str
    """What the set is called."""
    fits: Callable[[Folder], bool]
    """Whether a folder has the form, told by the names in it alone."""
    opened: Callable[[Folder], Source]
    """The folder as a source."""
    takes: tuple[str, ...] = ()
    """Options that have an effect on it."""
    own: re.Pattern[str] = re.compile("")
    """How the paths of its images begin. In a folder with any other image it is not recognised, for that would be left out."""


_NO_IMAGE = re.compile(r"(?!)")
"""Of sets of videos."""
LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout("ImageNet-1k", imagenet.fits, imagenet.opened),
    "imagenet_v2": Layout("ImageNet-V2", imagenet_like.fits_v2, imagenet_like.opened_v2),
    "imagenet_wnids": Layout("ImageNet-A, -R or -Sketch", imagenet_like.fits_wnids, imagenet_like.opened_wnids),
    "inaturalist2018": Layout("iNaturalist 2018", inaturalist.fits_2018, inaturalist.opened_2018),
    "inaturalist2021": Layout("iNaturalist 2021", inaturalist.fits_2021, inaturalist.opened_2021),
    "places205": Layout("Places205", places.fits, places.opened),
    "food101": Layout("Food-101", food.fits, food.opened),
    "cifar10": Layout("CIFAR-10", cifar.fits_10, cifar.opened_10),
    "cifar100": Layout("CIFAR-100", cifar.fits_100, cifar.opened_100),
    "sun397": Layout("SUN397", sun.fits, sun.opened),
    "cars": Layout("Stanford Cars", cars.fits, cars.opened),
    "aircraft": Layout("FGVC-Aircraft", aircraft.fits, aircraft.opened),
    "voc2007": Layout("Pascal VOC 2007", voc.fits, voc.opened, own=voc.OWN),
    "voc2012_masks": Layout("Pascal VOC 2012 segmentation", voc_masks.fits, voc_masks.opened, own=voc_masks.OWN),
    "ade20k": Layout("ADE20K", ade20k.fits, ade20k.opened, own=ade20k.OWN),
    "cityscapes": Layout("Cityscapes", cityscapes.fits, cityscapes.opened, own=cityscapes.OWN),
    "dtd": Layout("Describable Textures", dtd.fits, dtd.opened),
    "pets": Layout("Oxford-IIIT Pets", pets.fits, pets.opened),
    "caltech101": Layout("Caltech-101", caltech.fits, caltech.opened),
    "flowers102": Layout("Oxford Flowers-102", flowers.fits, flowers.opened),
    "cub200": Layout("CUB-200-2011", cub.fits, cub.opened),
    "landmarks": Layout("Revisited Oxford or Paris", landmarks.fits, landmarks.opened),
    "met": Layout("Met", met.fits, met.opened),
    "amstertime": Layout("AmsterTime", amstertime.fits, amstertime.opened),
    "ucf101": Layout("UCF-101", ucf.fits, ucf.opened, ("frames", "fold"), own=_NO_IMAGE),
    "something_v2": Layout("Something-Something v2", something.fits, something.opened, ("frames",), own=_NO_IMAGE),
    "kinetics400": Layout("Kinetics-400", kinetics.fits, kinetics.opened, ("frames",), own=_NO_IMAGE),
    "spair": Layout("SPair-71k", spair.fits, spair.opened, own=spair.OWN),
    "davis": Layout("DAVIS 2017", davis.fits, davis.opened, own=davis.OWN),
    "nyu_depth_v2": Layout("NYU Depth v2", nyu.fits, nyu.opened, ("depth_unit",), own=nyu.OWN),
    "kitti_eigen": Layout("KITTI depth on Eigen's split", kitti.fits, kitti.opened, ("depth_unit",), own=kitti.OWN),
}


def layout_of(folder: Folder, asked: str | None, *, clips: bool = False) -> Layout | None:
    """The form that was asked for, else the one that the folder has, which is said aloud; None where it has none.

    Args:
        clips: Whether videos are wanted: images beside a set of videos do not count.

    Raises:
        ConfigError: No form of that name is known.
    """
    if asked == NONE:
        return None
    if asked is not None:
        if asked not in LAYOUTS:
            raise unknown("layout", asked, [*LAYOUTS, NONE])
        return LAYOUTS[asked]
    for name, layout in LAYOUTS.items():
        if layout.fits(folder):
            alone = (clips and layout.own is _NO_IMAGE) or folder.holds_only(layout.own)
            _told(shown(folder.address), name, alone=alone)
            if alone:
                return layout
    return None


@lru_cache(maxsize=64)
def _told(address: str, name: str, *, alone: bool) -> None:
    """Say it once: an evaluation opens a folder more than once."""
    title = LAYOUTS[name].title
    if alone:
        say(f"{address} is read as {title}, whose form it has (layout={name}); ?layout=none reads it as it lies.")
    else:
        say(f"{address} holds {title} and other images, so it is read as it lies; ?layout={name} reads {title} alone.")
