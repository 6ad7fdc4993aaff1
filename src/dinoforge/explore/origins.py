"""Where the images of a collection come from, and what is said of them."""

from __future__ import annotations

import numpy as np

from dinoforge.base.home import at_home
from dinoforge.data.manifest import is_manifest, read_manifest
from dinoforge.data.sources.options import split_address
from dinoforge.data.sources.source import Source
from dinoforge.explore.answers import Shown


class Origins:
    """What is known of the rows of a source.

    Attributes:
        reasons: Why each is in the manifest, empty where that is not known; None where the source is no manifest with reasons.
    """

    def __init__(self, source: Source) -> None:
        self._columns = source.columns
        self.reasons, self._uris = _of_manifest(source)

    def of(self, row: int) -> Shown:
        """What is known of a row."""
        columns = self._columns
        name, label = str(columns["id"][row]), columns.get("label")
        uris = [str(texts[row]) for texts in (columns.get("url"), self._uris) if texts is not None]
        return Shown(
            row, name, next((uri for uri in uris if uri), name),
            int(label[row]) if label is not None and label[row] >= 0 else None,
            self._text(columns.get("label_name"), row), self._text(self.reasons, row),
        )  # fmt: skip

    @staticmethod
    def brought() -> Shown:
        """What is known of a picture that was brought along: nothing."""
        return Shown(None, "the picture that was brought", "", None, None, None)

    @staticmethod
    def _text(texts: np.ndarray | None, row: int) -> str | None:
        return (str(texts[row]) or None) if texts is not None else None


def _of_manifest(source: Source) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Reasons and keys of the images, where the source is a manifest."""
    path = at_home(split_address(source.address)[0])
    if not is_manifest(path):
        return None, None
    manifest = read_manifest(path, columns=["id", "uri", "reason"])
    place = {name: row for row, name in enumerate(manifest.column("id").tolist())}
    rows = np.asarray([place[str(name)] for name in source.columns["id"]], np.int64)
    return (manifest.column("reason")[rows] if manifest.holds("reason") else None), manifest.column("uri")[rows]
