"""A frozen backbone that looks at sources, and remembers: a table of features is computed once for all who ask for it.

Axes: N usable images of a source.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import DataError
from dinoforge.base.files import explained, write_json
from dinoforge.base.hardware import Precision, cpu_flags, cpu_has_bf16
from dinoforge.base.lock import Busy
from dinoforge.base.log import say
from dinoforge.data.sources.options import placed
from dinoforge.data.sources.source import Source
from dinoforge.features.extract import Extraction, computed
from dinoforge.features.kept import Watch, files_of, keep
from dinoforge.features.kinds import KINDS
from dinoforge.features.store import read_features
from dinoforge.features.views import View, middle
from dinoforge.model.weights import Backbone

_SHARD = 1024
_ROWS_AT_ONCE = 4096
_FORMAT = 1
"""Goes up when decoding, a view or a kind computes something else than before."""
_DRAWN = "toy://"
"""Sources whose address determines every pixel."""


@dataclass(frozen=True, slots=True)
class Look:
    """Features of one kind, of every usable image of a source."""

    values: Float[Tensor, "N *shape"]
    """Mapped from the disk where they are kept there: never to be changed in place."""
    rows: Int[np.ndarray, " N"]
    """Of the source, in order."""
    source: Source
    """Those rows of it, so that its columns go with ``values``."""


class Eyes:
    """A frozen backbone and what it has seen.

    Args:
        folder: Where features are kept for later processes, one folder a table; None keeps them in memory alone.
        on_broken: Is told of images that are set aside.
    """

    def __init__(
        self, backbone: Backbone, how: Extraction, *, folder: Path | None, on_broken: Callable[[str, str], None]
    ) -> None:
        self.backbone, self.how, self.on_broken = backbone, how, on_broken
        self._folder, self._seen = folder, dict[str, Look]()

    @property
    def usual(self) -> View:
        """What is seen of a picture unless a view is given."""
        return middle(self.backbone.preprocessing)

    def look(self, source: Source, kind: str = "image", *, view: View | None = None, remember: bool = True) -> Look:
        """The features of a source, computed unless they are remembered.

        Args:
            kind: ``image`` [N D], ``blocks`` [N L+1 D], ``patches`` [N H W D], ``norms`` [N H W] or ``gem`` [N 2D]; see
                ``kinds.py``.
            view: What of a picture is seen; by default the middle that the preprocessing cuts out.
            remember: Whether the table is kept; not worth its memory where many are looked at, each once.

        Raises:
            NoneUsable: Not one image could be used.
            RunError: The folder cannot be written.
        """
        seen = view or self.usual
        if not remember:
            return self._passing(source, kind, seen)
        key, files = self._key(source, kind, seen)
        found = self._seen.get(key) or self._part(source, kind, seen)
        if found is None:
            lasting = self._folder is not None and (files is not None or source.address.startswith(_DRAWN))
            found = (
                self._lasting(source, kind, seen, self._folder / key)
                if lasting and self._folder is not None
                else self._passing(source, kind, seen)
            )
        self._seen[key] = found
        return found

    def _key(self, source: Source, kind: str, view: View) -> tuple[str, str | None]:
        """What features of a source are remembered by, and the state of its files."""
        files = files_of(source)
        facts = {
            "backbone": self.backbone.fingerprint, "preprocessing": self.backbone.preprocessing.model_dump(mode="json"),
            "data": source.fingerprint, "files": files, "address": placed(source.address), "kind": kind,
            "view": view.name, "precision": self.how.precision, "format": _FORMAT,
        }  # fmt: skip
        return fingerprint(facts), files

    def _part(self, source: Source, kind: str, view: View) -> Look | None:
        """Of some rows of a source whose features are remembered; None where they are not."""
        if source.part_of is None:
            return None
        whole, rows = source.part_of
        held = self._seen.get(self._key(whole, kind, view)[0]) or self._part(whole, kind, view)
        if held is None:
            return None
        place = np.full(len(whole), -1)
        place[held.rows] = np.arange(len(held.rows))
        usable = np.flatnonzero(place[rows] >= 0)
        return _look(held.values[torch.from_numpy(place[rows][usable])], usable, source) if len(usable) else None

    def _passing(self, source: Source, kind: str, view: View) -> Look:
        rows, values = list[np.ndarray](), list[Tensor]()
        for some, found in computed(
            self.backbone.module.to(self.how.device), source, self.backbone.preprocessing, self.how, of=KINDS[kind],
            on_broken=self.on_broken, view=view,
        ):  # fmt: skip
            rows.append(some)
            values.append(found.float().cpu())
        return _look(torch.cat(values), np.concatenate(rows), source)

    def _lasting(self, source: Source, kind: str, view: View, path: Path) -> Look:
        with explained(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path.parent / f"{self.backbone.fingerprint}.json", {"precision": self.how.precision})
        if not (path / "features.json").exists():
            try:
                keep(
                    path, source, self.backbone, self.how, kind=kind, on_broken=self.on_broken, rows=_SHARD, view=view,
                    watch=Watch("looking"), unless_there=True,
                    facts={"view": view.name, "address": placed(source.address)},
                )  # fmt: skip
            except Busy:
                say(f"{source.address}: another process computes the same features; these are computed beside it.")
                return self._passing(source, kind, view)
        stored = read_features(path)
        place = {name: row for row, name in enumerate(source.columns["id"].tolist())}
        try:
            rows = np.asarray([place[name] for name in stored.ids.tolist()], np.int64)
        except KeyError:
            raise DataError(f"{path} holds features of other images; remove it.") from None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nobody writes, see Look
            return _look(torch.from_numpy(np.asarray(stored.values)), rows, source)


def seen_in(folder: Path | None, backbone: Backbone, device: torch.device) -> Precision | None:
    """In which precision features of a backbone are kept in a folder; None where there are none, or the device has not it."""
    if folder is None:
        return None
    try:
        found = json.loads((folder / f"{backbone.fingerprint}.json").read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if found == "bf16" and device.type == "cpu" and not cpu_has_bf16(cpu_flags()):
        return None  # made on an accelerator: a processor would emulate it, hundreds of times slower
    return next((precision for precision in get_args(Precision) if precision == found), None)


def _look(values: Tensor, rows: np.ndarray, source: Source) -> Look:
    """The features of those rows.

    Raises:
        DataError: Some are not finite.
    """
    for part, at in zip(values.split(_ROWS_AT_ONCE), range(0, len(values), _ROWS_AT_ONCE), strict=False):
        if not part.isfinite().all():
            row = at + int((~part.isfinite().flatten(1).all(1)).nonzero()[0])
            name = source.columns["id"][rows[row]]
            raise DataError(f"the features of {name} are not finite; a backbone that gives such is broken.")
    return Look(values, rows, source if len(rows) == len(source) else source.select(rows))
