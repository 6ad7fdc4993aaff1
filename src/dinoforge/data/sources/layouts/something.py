"""Something-Something v2 (Goyal et al. 2017): ``20bn-something-something-v2/<id>.webm``, lists in ``labels/``.

``train.json`` and ``validation.json`` give each clip a template, ``Holding [something]``; ``labels.json`` numbers the templates
without the brackets. ``test.json`` gives none.
"""

from __future__ import annotations

from collections.abc import Mapping

from dinoforge.data.film import VIDEOS
from dinoforge.data.sources.clips import Films
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.gathered import Gathered

_VIDEOS = "20bn-something-something-v2"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def fits(folder: Folder) -> bool:
    """Whether there are the lists, and videos."""
    lists = folder.has("labels/train.json", "labels/validation.json")
    return lists and any(name.startswith(f"{_VIDEOS}/") for name in folder.ending(VIDEOS))


def opened(folder: Folder) -> Films:
    """Clips of the 174 templates; those of the test split have no class.

    Raises:
        DataError: See ``Gathered``; or a template is not numbered.
    """
    found = Gathered(folder, _classes(folder))
    for name, split in _SPLITS.items():
        by = f"labels/{name}.json"
        if split == "test" and not folder.has(by):
            continue
        for one in folder.entries(by, "id", *(() if split == "test" else ("template",))):
            template = None if split == "test" else _plain(one["template"])
            found.add(f"{_VIDEOS}/{one['id']}.webm", by=by, split=split, label=template)
    return Films(found.source())


def _classes(folder: Folder) -> list[str]:
    """Templates in the order of their numbers."""
    by = folder.first("labels/labels.json", "labels.json")
    held = folder.json(by)
    if not isinstance(held, Mapping):
        raise folder.error(by, "holds no mapping of templates to numbers")
    numbers = {folder.class_number(by, number): str(name) for name, number in held.items()}
    if sorted(numbers) != list(range(len(held))):
        raise folder.error(by, "does not number its templates 0, 1, 2 …")
    return [numbers[number] for number in range(len(held))]


def _plain(template: object) -> str:
    return str(template).replace("[", "").replace("]", "")
