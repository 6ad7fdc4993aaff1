"""The Met dataset (Ypsilantis et al. 2021): ``ground_truth/MET_database.json``, ``testset.json``, ``valset.json``.

Exhibits (``id``) are groups. A query that shows none of them has no ``MET_id`` and the group -1. The small database
(``mini_MET_database.json``) is read where the whole one is not there. The lists begin at ``MET/`` and ``test_met/``, which are
looked for at any place in the folder (``images/`` as published).
"""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_WHOLE, _MINI = (f"ground_truth/{name}MET_database.json" for name in ("", "mini_"))
_ASKED = {"query": "ground_truth/testset.json", "val": "ground_truth/valset.json"}


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    return (folder.has(_WHOLE) or folder.has(_MINI)) and folder.has(_ASKED["query"])


def opened(folder: Folder) -> Source:
    """Splits gallery, query (the test queries) and val (those to tune on, against the same gallery).

    Raises:
        DataError: See ``Gathered``.
    """
    found = Gathered(folder)
    by = folder.first(_WHOLE, _MINI)
    rows = [(by, "gallery", one) for one in folder.entries(by, "path", "id")]
    for split, name in _ASKED.items():
        if folder.has(name):
            rows += [(name, split, one) for one in folder.entries(name, "path")]
    starts: dict[str, str] = {}
    for name, split, one in rows:
        path, place = str(one["path"]), str(one["path"]).partition("/")[0]
        if place not in starts:
            starts[place] = folder.prefix(path)
        exhibit = one["id"] if split == "gallery" else one.get("MET_id", -1)
        found.add(starts[place] + path, by=name, split=split, group=folder.whole(name, exhibit))
    return found.source()
