"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), the Python version: pickles that hold the pictures themselves.

Axes: N pictures of 32 by 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dinoforge.base.errors import DataError
from dinoforge.data.decode import Broken, Picture
from dinoforge.data.sources.layouts.folder import Folder
from dinoforge.data.sources.layouts.unpickled import Array
from dinoforge.data.sources.options import shown
from dinoforge.data.sources.source import Source, file_stamp
from dinoforge.data.toyworld.pollution import png

_CIFAR10 = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
_CIFAR100 = {"train": "train", "test": "test"}
_SIDE = 32


def fits_10(folder: Folder) -> bool:
    """Whether the folder is ``cifar-10-batches-py``."""
    return folder.has(*_CIFAR10, "batches.meta")


def fits_100(folder: Folder) -> bool:
    """Whether the folder is ``cifar-100-python``."""
    return folder.has(*_CIFAR100, "meta")


def opened_10(folder: Folder) -> Source:
    """Ten classes.

    Raises:
        DataError: A file is not there, holds something else than plain data, or a class that is none.
    """
    return Batches(folder, _CIFAR10, {"label": Classes(folder, "batches.meta", "labels", "label_names")})


def opened_100(folder: Folder) -> Source:
    """A hundred classes; the twenty coarse ones are the columns ``coarse_label`` and ``coarse_name``.

    Raises:
        DataError: As ``opened_10``.
    """
    fine = Classes(folder, "meta", "fine_labels", "fine_label_names")
    return Batches(
        folder, _CIFAR100, {"label": fine, "coarse": Classes(folder, "meta", "coarse_labels", "coarse_label_names")}
    )


class Classes:
    """A column of classes: the key of their numbers in each file, and their names in a file of its own."""

    def __init__(self, folder: Folder, meta: str, key: str, names: str) -> None:
        self._folder, self.key = folder, key
        held = folder.pickled(meta, names)[names]
        if not isinstance(held, list) or not held:
            raise folder.error(meta, f"holds no list {names!r}")
        self._names = [one.decode("latin1") if isinstance(one, bytes) else str(one) for one in held]

    def of(self, name: str, held: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and names of so many pictures of a file.

        Raises:
            DataError: They are no numbers of classes, or more or fewer.
        """
        listed = held if isinstance(held, list) else np.asarray(held, dtype=object).ravel().tolist()
        found = [self._folder.whole(name, one) for one in listed]
        odd = next((one for one in found if not 0 <= one < len(self._names)), None)
        if odd is not None:
            raise self._folder.error(name, f"has the class {odd}; its {len(self._names)} classes are numbered from 0")
        if len(found) != count:
            raise self._folder.error(name, f"has {len(found):,} {self.key} for {count:,} pictures")
        numbers = np.asarray(found, dtype=np.int64)
        return numbers, np.asarray(self._names, dtype=np.str_)[numbers]


class Batches(Source):
    """Pictures in pickles, each file read once a process. A row is called by its file and place: ``data_batch_1:17``.

    Args:
        files: Which split each file is.
        classes: By ``label`` and ``coarse``.
    """

    def __init__(self, folder: Folder, files: Mapping[str, str], classes: Mapping[str, Classes]) -> None:
        self.address, self._folder, self._files = shown(folder.address), folder, [*files]
        held = {name: folder.pickled(name, "data", *(one.key for one in classes.values())) for name in files}
        self._pixels = [_checked(folder, name, one) for name, one in held.items()]
        counts = [len(part) for part in self._pixels]
        self._starts = np.cumsum([0, *counts])
        ids = [f"{name}:{row}" for name, count in zip(files, counts, strict=True) for row in range(count)]
        self.columns: dict[str, np.ndarray] = {
            "id": np.asarray(ids, dtype=np.str_),
            "split": np.repeat(np.asarray([*files.values()], dtype=np.str_), counts),
        }
        for column, one in classes.items():
            parts = [one.of(name, part[one.key], n) for (name, part), n in zip(held.items(), counts, strict=True)]
            numbers, names = zip(*parts, strict=True)
            number, name = ("label", "label_name") if column == "label" else (f"{column}_label", f"{column}_name")
            self.columns |= {number: np.concatenate(numbers), name: np.concatenate(names)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": [None] * len(self._files)}

    def picture(self, row: int) -> Picture:
        """The picture itself, without the way through a file."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._pixels[part] is None:
            self._pixels[part] = self._again(self._files[part])
        flat = self._pixels[part][row - int(self._starts[part])]
        return Picture.of(np.ascontiguousarray(flat.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0)))

    def _again(self, name: str) -> UInt8[np.ndarray, "N 3072"]:
        try:
            return _checked(self._folder, name, self._folder.pickled(name, "data"))
        except DataError as error:
            raise Broken(str(error)) from None

    def encoded(self, row: int) -> bytes:
        """The picture as a PNG file."""
        return png(self.picture(row).pixels())

    def stamp(self, row: int) -> str | None:
        """That of the whole file."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        name = self._files[part]
        return self._folder.stamps.get(name) or file_stamp(f"{self._folder.address}/{name}")


def _checked(folder: Folder, name: str, held: Mapping[str, Any]) -> UInt8[np.ndarray, "N 3072"]:
    """The pictures of a file: red, green and blue one after another, each row by row."""
    found = held["data"].values if isinstance(held["data"], Array) else np.zeros(0)
    if found.dtype != np.uint8 or found.ndim != 2 or found.shape[1] != 3 * _SIDE * _SIDE:
        raise folder.error(name, f"holds {found.dtype} {list(found.shape)} as 'data', not bytes of pictures of 32x32")
    return found
