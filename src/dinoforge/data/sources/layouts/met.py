"""The Met dataset (Ypsilantis et al. 2021): ``ground_truth/MET_database.json``, ``testset.json``, ``valset.json``.

The lists may lie in the folder itself too. Exhibits (``id``) are groups; a query that shows none of them has no ``MET_id`` and
the group -1. The small database (``mini_MET_database.json``) is read where the whole one is not there. The paths begin at
``MET/`` and ``test_met/``, which are looked for at any place in the folder (``images/`` as published).
"""

from __future__ import annotations

from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered
from dinoforge.data.sources.source import Source

_PLACES = ("ground_truth/", "")
_DATABASES = ("MET_database.json", "mini_MET_database.json")
_ASKED = {"query": "testset.json", "val": "valset.json"}


def _place(folder: Folder) -> str:
    """Where the lists lie; as published if nowhere."""
    return next((place for place in _PLACES if any(folder.has(place + name) for name in _DATABASES)), _PLACES[0])


def fits(folder: Folder) -> bool:
    """Whether the folder has this form."""
    place = _place(folder)
    return any(folder.has(place + name) for name in _DATABASES) and folder.has(place + _ASKED["query"])


def opened(folder: Folder) -> Source:
    """Splits gallery, query (the test queries) and val (those to tune on, against the same gallery).

    Raises:
        DataError: See ``Gathered``.
    """
    found = Gathered(folder)
    place = _place(folder)
    by = folder.first(*(place + name for name in _DATABASES))
    rows = [(by, "gallery", one) for one in folder.entries(by, "path", "id")]
    for split, name in _ASKED.items():
        if folder.has(place + name):
            rows += [(place + name, split, one) for one in folder.entries(place + name, "path")]
    start = folder.prefix(str(one["path"]) for _, _, one in rows)
    for name, split, one in rows:
        exhibit = one["id"] if split == "gallery" else one.get("MET_id", -1)
        found.add(start + str(one["path"]), by=name, split=split, group=folder.whole(name, exhibit))
    return found.source()
