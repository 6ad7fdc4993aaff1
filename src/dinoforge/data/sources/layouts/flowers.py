"""Oxford Flowers-102 (Nilsback and Zisserman 2008): ``jpg/image_00001.jpg``, ``imagelabels.mat`` and ``setid.mat``.

The set publishes no names of its classes. Where the widespread ``cat_to_name.json`` lies beside it, these are taken.
"""

from __future__ import annotations

import numpy as np

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_LABELS, _SETS, _NAMES = "imagelabels.mat", "setid.mat", "cat_to_name.json"
_CLASSES = 102


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return folder.has(_LABELS, _SETS) and "jpg" in folder.top


def opened(folder: Folder) -> Source:
    """1,020 training, 1,020 validation and 6,149 test images; classes from 1.

    Raises:
        DataError: See ``Gathered``, or a set names an image without a label.
    """
    labels = np.atleast_1d(folder.mat(_LABELS, "labels")["labels"]).ravel()
    found = Gathered(folder, _names(folder) or _CLASSES, first=1)
    sets = folder.mat(_SETS, "trnid", "valid", "tstid")
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        for one in np.atleast_1d(sets[key]).ravel():
            image = folder.whole(_SETS, one)
            if not 1 <= image <= len(labels):
                raise folder.error(_SETS, f"names image {image}; {_LABELS} has {len(labels):,} labels")
            label = folder.whole(_LABELS, labels[image - 1])
            found.add(f"jpg/image_{image:05}.jpg", by=_SETS, split=split, label=label, labelled_by=_LABELS)
    return found.source()


def _names(folder: Folder) -> list[str] | None:
    if not folder.has(_NAMES):
        return None
    held = folder.json(_NAMES)
    if not isinstance(held, dict) or {*held} != {str(number) for number in range(1, _CLASSES + 1)}:
        raise folder.error(_NAMES, "does not name the classes 1 to 102")
    return [str(held[str(number)]) for number in range(1, _CLASSES + 1)]
