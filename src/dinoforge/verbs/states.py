"""The state of all that a score of ``evaluate`` depends on: where it is as it was, the score is not measured again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from dinoforge.base.config import Config, fingerprint
from dinoforge.data.decode import Broken
from dinoforge.data.sources.options import placed
from dinoforge.data.sources.source import Source, file_stamp
from dinoforge.data.sources.table import open_source
from dinoforge.evaluate.dense.labels import classes_file
from dinoforge.evaluate.evaluation import Sides
from dinoforge.evaluate.table import EVALUATIONS
from dinoforge.features.kept import files_of


def state(source: Source) -> str:
    """Changes when images or anything that is known of them does."""
    columns = {name: fingerprint(source.columns[name].tolist()) for name in sorted(source.columns)}
    return fingerprint({"address": placed(source.address), "files": files_of(source), "columns": columns})


def unstamped(sides: Sides, name: str, config: Config) -> str | None:
    """The address of images that go into the scores of a task and cannot be told unchanged; None where all can."""
    also = [open_source(text) for field in EVALUATIONS[name].images for text in texts(getattr(config, field))]
    return next((one.address for one in (sides.known, sides.asked, *also) if files_of(one) is None), None)


def texts(value: str | Sequence[str] | None) -> Sequence[str]:
    """What a setting that takes one or several names."""
    return (value,) if isinstance(value, str) else value or ()


def named_files(name: str, config: Config) -> dict[str, str | None]:
    """The state of files, and of images, that settings of a task name."""
    found, images = dict[str, str | None](), EVALUATIONS[name].images
    for field in (*images, *EVALUATIONS[name].files):
        for text in texts(getattr(config, field)):
            found[text] = state(open_source(text)) if field in images else file_stamp(text)
    return found


def beside(sides: Sides, name: str) -> dict[str, str | None]:
    """The state of the file that says what is in masks, of tasks that go by these."""
    file = classes_file(sides.known) if EVALUATIONS[name].needs == "masks" else None
    return {} if file is None else {str(file): file_stamp(file)}


_TRUTHS = {"masks": ("mask",), "depths": ("depth",), "asked": ("instance", "mask")}
"""Maps of ground truth, by what an evaluation needs."""


def maps(sides: Sides, name: str) -> dict[str, str]:
    """A digest of all maps of ground truth that a task goes by, which lie in files of their own."""
    names, digest = _TRUTHS.get(EVALUATIONS[name].needs, ()), hashlib.sha256()
    if not names:
        return {}
    for source in [sides.known] if sides.itself else [sides.known, sides.asked]:
        for row in range(0 if source.address.startswith("toy://") else len(source)):
            for truth in names:
                try:
                    found = source.extra(row, truth)
                except Broken as error:
                    digest.update(str(error).encode())
                    continue
                digest.update(b"-" if found is None else np.ascontiguousarray(found).tobytes())
    return {"maps": digest.hexdigest()[:16]}
