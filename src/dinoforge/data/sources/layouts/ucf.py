"""UCF-101 (Soomro et al. 2012): ``UCF-101/<class>/v_<class>_g01_c01.avi``, lists in ``ucfTrainTestlist/``.

Three splits are published; the first is read unless ``?fold=`` asks for another.
"""

from __future__ import annotations

from dinoforge.data.film import VIDEOS
from dinoforge.data.sources.clips import Films
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered

_LISTS = "ucfTrainTestlist"


def fits(folder: Folder) -> bool:
    """Whether there are the lists, and videos."""
    lists = folder.has(*(f"{_LISTS}/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")))
    return lists and any(folder.ending(VIDEOS))


def opened(folder: Folder) -> Films:
    """Clips of the 101 actions; those cut from one video are on one side. Lists name them as ``<class>/<file>``.

    Raises:
        DataError: See ``Gathered``; or classes are not numbered 1, 2, 3 …, or a clip's number is not that of its folder.
    """
    by = f"{_LISTS}/classInd.txt"
    rows = list(folder.rows(by, fields=2))
    if [folder.whole(by, number) for number, _ in rows] != list(range(1, len(rows) + 1)):
        raise folder.error(by, "does not number its classes 1, 2, 3 …")
    names = [name for _, name in rows]
    found, fold = Gathered(folder, names), folder.options.fold or 1
    lists = {split: f"{_LISTS}/{split}list{fold:02}.txt" for split in ("train", "test")}
    lines = {split: [line.split() for line in folder.lines(by)] for split, by in lists.items()}
    start = folder.prefix(line[0] for some in lines.values() for line in some)
    for split, some in lines.items():
        for path, *number in some:
            name = path.partition("/")[0]
            if number and number[0] != str(names.index(name) + 1 if name in names else 0):
                raise folder.error(lists[split], f"gives {path} the class {number[0]}, which is not its folder's")
            found.add(start + path, by=lists[split], split=split, label=name)
    return Films(found.source())
