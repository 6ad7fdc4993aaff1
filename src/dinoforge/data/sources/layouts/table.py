"""Every published form that is known. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from dinoforge.base.errors import unknown
from dinoforge.base.log import say
from dinoforge.data.sources.layouts import (
    aircraft,
    amstertime,
    caltech,
    cars,
    cifar,
    cub,
    dtd,
    flowers,
    food,
    imagenet,
    imagenet_like,
    inaturalist,
    landmarks,
    met,
    pets,
    places,
    sun,
    voc,
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
    "voc2007": Layout("Pascal VOC 2007", voc.fits, voc.opened),
    "dtd": Layout("Describable Textures", dtd.fits, dtd.opened),
    "pets": Layout("Oxford-IIIT Pets", pets.fits, pets.opened),
    "caltech101": Layout("Caltech-101", caltech.fits, caltech.opened),
    "flowers102": Layout("Oxford Flowers-102", flowers.fits, flowers.opened),
    "cub200": Layout("CUB-200-2011", cub.fits, cub.opened),
    "landmarks": Layout("Revisited Oxford or Paris", landmarks.fits, landmarks.opened),
    "met": Layout("Met", met.fits, met.opened),
    "amstertime": Layout("AmsterTime", amstertime.fits, amstertime.opened),
}


def layout_of(folder: Folder, asked: str | None) -> Layout | None:
    """The form that was asked for, else the one that the folder has, which is said aloud; None where it has none.

    Raises:
        ConfigError: No form of that name is known.
    """
    if asked == NONE:
        return None
    if asked is not None:
        if asked not in LAYOUTS:
            raise unknown("layout", asked, [*LAYOUTS, NONE])
        return LAYOUTS[asked]
    name = next((name for name, layout in LAYOUTS.items() if layout.fits(folder)), None)
    if name is None:
        return None
    _told(shown(folder.address), name)
    return LAYOUTS[name]


@lru_cache(maxsize=64)
def _told(address: str, name: str) -> None:
    """Say it once: an evaluation opens a folder more than once."""
    say(
        f"{address} is read as {LAYOUTS[name].title}, whose form it has (layout={name}); ?layout=none reads it as it lies."
    )
