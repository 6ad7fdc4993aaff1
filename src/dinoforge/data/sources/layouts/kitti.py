"""KITTI depth on the split of Eigen et al. 2014: raw drives, annotated depth, and lists of "image depth focal length".

Images are those of the raw drives (``2011_09_26/…_sync/image_02/data/0000000069.png``; JPEG too), depth those of
``data_depth_annotated`` (``…_sync/proj_depth/groundtruth/image_02/…``, in ``train/`` and ``val/`` or together), wherever in the
folder they lie. The lists are ``eigen_train_files_with_gt.txt``, ``kitti_eigen_test.txt`` and the like; a row whose depth is
``None`` was never annotated. Depth has 16 bits, 256 a metre, 0 = no reading.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dinoforge.base.log import say
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.source import Source

_LIST = re.compile(r"(?:.*/)?(?:kitti_)?eigen_(train|test)(?:_files)?(?:_with_gt)?\.txt")
_DRIVE = r"(\d{4}_\d{2}_\d{2}_drive_\d{4}_sync"
_IMAGE = re.compile(rf"(?:.*/)?{_DRIVE}/image_0[23]/data/\d+)\.(?:png|jpg|jpeg)")
_DEPTH = re.compile(rf"(?:.*/)?{_DRIVE}/proj_depth/groundtruth/image_0[23]/\d+)\.png")
_NONE = "None"
OWN = re.compile(r"(?i:[^/]*kitti[^/]*/)?(?:[^/]+/){0,3}\d{4}_\d{2}_\d{2}_drive_\d{4}_sync/")
"""How the paths of its images begin."""
_UNIT = repr(1 / 256)


def fits(folder: Folder) -> bool:
    """Whether there is a list, and depth that lies as in the set."""
    return bool(folder.firsts(_LIST)) and any(_DEPTH.fullmatch(name) for name in folder.files)


def _by_key(folder: Folder, form: re.Pattern[str]) -> dict[str, str]:
    """Files by what they are called from their drive on, without an ending."""
    return {match.group(1): name for name in folder.files if (match := form.fullmatch(name))}


def _of(there: dict[str, str], form: re.Pattern[str], path: str) -> str:
    """The file that a list's path means; the path itself where there is none, which is told then."""
    match = form.fullmatch(path)
    return there.get(match.group(1), path) if match else path


@lru_cache(maxsize=64)
def _left_out(address: str, by: str, images: int) -> None:
    """Say it once: an evaluation opens a folder more than once."""
    say(f"{address}: {images:,} images of {by} have no depth (None) and are left out.")


def opened(folder: Folder) -> Source:
    """Train and test with ``depth``; the lists' focal length is the column ``focal``.

    Raises:
        DataError: See ``Gathered``, or a list is damaged.
    """
    found, images, depths = Gathered(folder), _by_key(folder, _IMAGE), _by_key(folder, _DEPTH)
    for split, by in sorted(folder.firsts(_LIST).items(), reverse=True):  # train first
        left = 0
        for image, depth, focal in folder.rows(by, fields=3):
            if depth == _NONE:
                left += 1
                folder.used.add(_of(images, _IMAGE, image))
                continue
            found.add(_of(images, _IMAGE, image), by=by, split=split, focal=focal, depth_unit=_UNIT)
            found.add_truth("depth", _of(depths, _DEPTH, depth), by=by)
        if left:
            _left_out(shown(folder.address), by, left)
    return found.source()
