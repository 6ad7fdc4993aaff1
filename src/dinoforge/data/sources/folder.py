"""A folder, read recursively: image files and Parquet files; class and split by the names of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.decode import SUFFIXES, Broken
from dinoforge.data.sources.parquet import Parquet
from dinoforge.data.sources.source import Source, agreed, numbered

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "gallery": "gallery", "query": "query"}  # fmt: skip
"""Names of files and folders that are splits."""


class Folder(Source):
    """Image files under a root. ``id`` is the relative path; a file's folder is its label, unless it is a split or the root.

    Raises:
        DataError: No such folder, or nothing in it that is an image.
    """

    def __init__(self, root: Path) -> None:
        self.address, self._root = str(root), root
        names, rejected = _images(root)
        self.rejected = rejected
        self.columns = {"id": np.asarray(names, dtype=np.str_), **_by_path([Path(name) for name in names])}
        self.by_name = frozenset({"label"} & self.columns.keys())

    def encoded(self, row: int) -> bytes:
        """The file's bytes."""
        try:
            return (self._root / str(self.columns["id"][row])).read_bytes()
        except OSError as error:
            raise Broken(f"the file cannot be read: {error.strerror}") from None


_BLANK = {"i": np.int64(-1), "f": np.float64("nan"), "U": np.str_("")}
"""By kind of column: what stands for a source that does not know."""


class Several(Source):
    """Sources one after another, with the columns that any of them can fill; a class has one number in all (``agreed``)."""

    def __init__(self, address: str, parts: Sequence[Source]) -> None:
        parts = agreed(parts)
        self.address, self._parts = address, parts
        self.by_name = frozenset(
            name for name in ("label", "group")
            if all(name in part.by_name for part in parts if name in part.columns)
        ) & {name for part in parts for name in part.columns}  # fmt: skip
        self.rejected = [line for part in parts for line in part.rejected]
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        names = sorted({name for part in parts for name in part.columns})
        kinds = {name: column.dtype.kind for part in parts for name, column in part.columns.items()}

        def blank(name: str, part: Source) -> np.ndarray:
            return np.full(len(part), _BLANK[kinds[name]])

        self.columns = {
            name: np.concatenate([part.columns[name] if name in part.columns else blank(name, part) for part in parts])
            for name in names
        }

    def _find(self, row: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[part], row - int(self._starts[part])

    def encoded(self, row: int) -> bytes:
        """The bytes that the row's own source has."""
        part, own = self._find(row)
        return part.encoded(own)

    def pixels(self, row: int) -> np.ndarray:
        """The pixels that the row's own source has."""
        part, own = self._find(row)
        return part.pixels(own)

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The ground truth that the row's own source has."""
        part, own = self._find(row)
        return part.extra(own, name)


def open_folder(root: Path, *, label: str = "label") -> Source:
    """A folder's image files and Parquet files as one source.

    Raises:
        DataError: No such folder, or no image in it.
    """
    if not root.is_dir():
        raise DataError(f"{root} does not exist; data takes a folder of images, a Parquet file or toy://species.")
    tables = []
    for path in sorted(root.rglob("*.parquet")):
        table = Parquet(path, name=path.relative_to(root).as_posix(), label=label)
        split = _split_of(path.relative_to(root))
        if split and "split" not in table.columns:
            table.columns = {**table.columns, "split": np.full(len(table), split)}
        tables.append(table)
    files = Folder(root)
    parts = [part for part in (files, *tables) if len(part)]
    if not parts:
        seen = f"; {len(files.rejected)} other files are in it" if files.rejected else "; it is empty"
        raise DataError(f"{root} holds no image{seen}. Known are {', '.join(sorted(SUFFIXES))} and .parquet.")
    whole = parts[0] if len(parts) == 1 else Several(str(root), parts)
    whole.address, whole.rejected = str(root), files.rejected
    return whole


def _images(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Relative paths of the image files in a fixed order, and the other files with the reason; hidden ones are passed over."""
    names, rejected = [], []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if name.startswith(".") or path.suffix.lower() == ".parquet":
                continue
            if path.suffix.lower() in SUFFIXES:
                names.append(relative)
            else:
                rejected.append((relative, f"{path.suffix or 'no suffix'} is no image format known here"))
    return names, rejected


def _split_of(path: Path) -> str | None:
    """The split that a file's name or one of its folders stands for."""
    words = [*path.parts[:-1], path.stem]
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)


def _by_path(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Split and label columns, where the names of folders give them."""
    found: dict[str, np.ndarray] = {}
    folders = [path.parts[:-1] for path in paths]
    splits = [next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), "") for parts in folders]
    if any(splits):
        found["split"] = np.asarray(splits, dtype=np.str_)
    labels = [next((part for part in reversed(parts) if part.lower() not in SPLITS), "") for parts in folders]
    if len({label for label in labels if label}) > 1:
        found["label_name"] = np.asarray(labels, dtype=np.str_)
        found["label"] = numbered(found["label_name"])
    return found
