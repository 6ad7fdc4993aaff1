"""What a manifest may show: only images below folders that its user declared, for it may be of anyone's making.

A manifest names its sources by address, and those may name files in turn, in ways of their own. Whoever opens one in a browser
would show any image of the disk that it names. So it is not the names that are looked at but the reading: each path, followed
to where it really lies, before the disk is asked for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from dinoforge.base.errors import ConfigError
from dinoforge.base.home import at_home
from dinoforge.data.decode import Broken, Picture
from dinoforge.data.manifest import is_manifest
from dinoforge.data.sources.options import scheme_of, split_address
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import behind
from dinoforge.data.sources.table import open_source

T = TypeVar("T")


def open_below(data: str, roots: Sequence[str]) -> Source:
    """The images at an address; of a manifest only what lies below its own folder, the working directory or the roots.

    What a row names is looked at where the row has a stamp, and again when it is read: an image elsewhere that is found only
    then, in a data set of the library ``datasets`` say, is broken.

    Raises:
        ConfigError: It lists files elsewhere, or roots are given for something that is no manifest.
        DataError: See ``open_source``.
    """
    place = "" if scheme_of(data) else str(at_home(split_address(data)[0]))
    if not place or not is_manifest(Path(place)):
        if roots:
            raise ConfigError(f"roots={','.join(roots)} has no effect: {data} is no manifest.")
        return open_source(data)
    below = (os.path.realpath(at_home(root)) for root in (".", os.path.dirname(place) or ".", *roots))  # noqa: PTH120
    fence = Fence(data, os.path.realpath(place), tuple(dict.fromkeys(below)))
    with behind(fence):
        found = Fenced(open_source(data), fence)
    for row in range(len(found)):
        found.stamp(row)
    return found


@dataclass(frozen=True, slots=True)
class Fence:
    """Refuses paths of the disk that a manifest leads to and that lie elsewhere than below its roots."""

    data: str
    manifest: str
    """Where it really lies: it may be read itself."""
    roots: tuple[str, ...]
    """Where they really lie."""
    _folders: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, path: str) -> None:
        """Let a path pass.

        Raises:
            ConfigError: It lies elsewhere.
        """
        real = self._real(path)
        if real != self.manifest and not any(
            real == root or real.startswith(root.rstrip("/") + "/") for root in self.roots
        ):
            raise ConfigError(
                f"{self.data} lists {real}, which is below none of {', '.join(self.roots)}; roots= takes further folders."
            )

    def _real(self, path: str) -> str:
        """As ``os.path.realpath``; a folder is followed once, for a million files may lie in it."""
        folder, name = os.path.split(path)
        if not os.path.isabs(path) or name in {"", ".", ".."} or os.path.islink(path):  # noqa: PTH114, PTH117
            return os.path.realpath(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)  # noqa: PTH118


class Fenced(Source):
    """A source whose rows are read behind a fence, in whatever thread or process."""

    def __init__(self, whole: Source, fence: Fence) -> None:
        self.address, self.columns, self.rejected = whole.address, whole.columns, whole.rejected
        self.by_name, self.mask_names = whole.by_name, whole.mask_names
        self._whole, self._fence = whole, fence

    def encoded(self, row: int) -> bytes:
        """As of the source; an image elsewhere is broken."""
        return self._read(lambda: self._whole.encoded(row))

    def picture(self, row: int) -> Picture:
        """As of the source; an image elsewhere is broken."""
        return self._read(lambda: self._whole.picture(row))

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """As of the source; a picture elsewhere is broken."""
        return self._read(lambda: self._whole.extra(row, name))

    def stamp(self, row: int) -> str | None:
        """As of the source.

        Raises:
            ConfigError: The file lies elsewhere.
        """
        with behind(self._fence):
            return self._whole.stamp(row)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            with behind(self._fence):
                return read()
        except ConfigError as error:
            raise Broken(str(error)) from None
