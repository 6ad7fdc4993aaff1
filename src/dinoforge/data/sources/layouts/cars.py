"""Stanford Cars (Krause et al. 2013): ``cars_train/``, ``cars_test/`` and MATLAB annotations, in both published forms.

The first has ``devkit/cars_train_annos.mat`` and for the test images ``cars_test_annos_withlabels.mat``, which comes alone;
with the ``devkit/cars_test_annos.mat`` that has no classes the labels of test images are unknown (-1). The second has all
images in ``car_ims/`` and one ``cars_annos.mat``.
"""

from __future__ import annotations

import numpy as np

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_TRAIN, _META, _ALL = "devkit/cars_train_annos.mat", "devkit/cars_meta.mat", "cars_annos.mat"
_TEST = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")


def fits(folder: Folder) -> bool:
    """Whether the folder has one of these forms."""
    return folder.has(_TRAIN, _META) or (folder.has(_ALL) and "car_ims" in folder.top)


def opened(folder: Folder) -> Source:
    """196 models from 1, with the names of the annotations.

    Raises:
        DataError: See ``Gathered``.
    """
    if not folder.has(_TRAIN):
        return _one_file(folder)
    found = Gathered(folder, _names(folder, _META), first=1)
    test = next((name for name in _TEST if folder.has(name)), None)
    for split, by in (("train", _TRAIN), ("test", test)):
        if by is not None:
            files, labels = folder.fields(by, "annotations", "fname", "class")
            for file, label in zip(files, labels, strict=True):
                found.add(f"cars_{split}/{file}", by=by, split=split, label=folder.whole(by, label))
    if test is None and folder.has("devkit/cars_test_annos.mat"):
        for file in folder.fields("devkit/cars_test_annos.mat", "annotations", "fname")[0]:
            found.add(f"cars_test/{file}", by="devkit/cars_test_annos.mat", split="test")
    return found.source()


def _names(folder: Folder, name: str) -> list[str]:
    return [str(one) for one in np.atleast_1d(folder.mat(name, "class_names")["class_names"])]


def _one_file(folder: Folder) -> Source:
    """The form with all images in one folder."""
    found = Gathered(folder, _names(folder, _ALL), first=1)
    for file, label, test in zip(*folder.fields(_ALL, "annotations", "relative_im_path", "class", "test"), strict=True):
        split = "test" if folder.whole(_ALL, test) else "train"
        found.add(str(file), by=_ALL, split=split, label=folder.whole(_ALL, label))
    return found.source()
