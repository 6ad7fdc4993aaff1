"""NYU Depth v2 (Silberman et al. 2012) as depth estimation reads it (Lee et al. 2019): lists of "image depth focal length".

The list ``nyu_train.txt`` names 24,231 frames of the training scenes, as they lie or below ``sync/``, and ``nyu_test.txt`` the
654 official ones, as they lie or below ``official_splits/test/``; paths may begin with a slash. Depth is ``sync_depth_*.png``,
16 bits of millimetres, filled in.
"""

from __future__ import annotations

import re

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_LIST = re.compile(r"(?:.*/)?nyu(?:depthv2)?_(train|test)(?:_files_with_gt)?\.txt")
OWN = re.compile(r"(?i:[^/]*nyu[^/]*/)?(?:sync/|official_splits/(?:train|test)/)?[^/]+/(?:rgb|sync_depth)_")
"""How the paths of its images begin."""


def fits(folder: Folder) -> bool:
    """Whether there is a list, and depth that is called as in the set."""
    return bool(folder.firsts(_LIST)) and any("/sync_depth_" in f"/{name}" for name in folder.files)


def opened(folder: Folder) -> Source:
    """Train and test with ``depth``; the lists' focal length is the column ``focal``.

    Raises:
        DataError: See ``Gathered``, or a list is damaged.
    """
    found = Gathered(folder)
    for split, by in sorted(folder.firsts(_LIST).items(), reverse=True):  # train first
        rows = [[part.lstrip("/") for part in row] for row in folder.rows(by, fields=3)]
        place = folder.prefix(image for image, _, _ in rows)
        for image, depth, focal in rows:
            found.add(f"{place}{image}", by=by, split=split, focal=focal, depth_unit="millimetres")
            found.add_truth("depth", f"{place}{depth}", by=by)
    return found.source()
