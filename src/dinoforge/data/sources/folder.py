"""A folder, read recursively: image files and Parquet files; class and split by the names of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoforge.base.errors import DataError
from dinoforge.data.decode import SUFFIXES, Broken, Picture
from dinoforge.data.manifest import is_manifest
from dinoforge.data.sources.parquet import Parquet
from dinoforge.data.sources.source import Source, agreed, file_stamp, numbered

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "gallery": "gallery", "query": "query"}  # fmt: skip
"""Names of files and folders that are splits."""


class Folder(Source):
    """Image files under a root. ``id`` is the relative path; a file's folder is its label, unless it is a split or the root."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.address, self._root = str(root), root
        self.columns = {"id": np.asarray(names, dtype=np.str_), **_by_path(names)}
        self.by_name = frozenset({"label"} & self.columns.keys())

    def encoded(self, row: int) -> bytes:
        """The file's bytes."""
        try:
            return (self._root / str(self.columns["id"][row])).read_bytes()
        except OSError as error:
            raise Broken(f"the file cannot be read: {error.strerror}") from None

    def stamp(self, row: int) -> str | None:
        """The file's size and the time of its last change."""
        return file_stamp(f"{self._root}/{self.columns['id'][row]}")


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

    def picture(self, row: int) -> Picture:
        """The picture that the row's own source has."""
        part, own = self._find(row)
        return part.picture(own)

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """The ground truth that the row's own source has."""
        part, own = self._find(row)
        return part.extra(own, name)

    def stamp(self, row: int) -> str | None:
        """The stamp that the row's own source has."""
        part, own = self._find(row)
        return part.stamp(own)


def open_folder(root: Path, *, label: str = "label") -> Source:
    """A folder's image files and Parquet files as one source; other files, and tables of something else, are ``rejected``.

    Raises:
        DataError: No such folder, or no image in it.
        ConfigError: A Parquet file with images has no such label column.
    """
    if not root.is_dir():
        raise DataError(f"{root} does not exist; data takes a folder of images, a Parquet file or toy://species.")
    images, tables, rejected = _files(root)
    parts: list[Source] = [Folder(root, images)] if images else []
    for name in tables:
        try:
            parts.append(_table(root, name, label=label))
        except DataError as error:
            rejected.append((name, str(error).removeprefix(f"{root / name} ")))
    if not parts:
        seen = "; it is empty"
        if rejected:
            name, reason = rejected[0]
            seen = f"; {len(rejected)} other files are in it, the first {name}: {reason.rstrip('.')}"
        raise DataError(f"{root} holds no image{seen}. Known are {', '.join(sorted(SUFFIXES))} and .parquet.")
    whole = parts[0] if len(parts) == 1 else Several(str(root), parts)
    whole.address, whole.rejected = str(root), rejected
    return whole


def _table(root: Path, name: str, *, label: str) -> Source:
    """A Parquet file of a folder.

    Raises:
        DataError: It holds no images.
    """
    if is_manifest(root / name):
        raise DataError(f"{root / name} a manifest: give its own path")
    table = Parquet(root / name, name=name, label=label)
    if not len(table):
        raise DataError(f"{root / name} has no row")
    split = _split_of(Path(name))
    if split and "split" not in table.columns:
        table.columns = {**table.columns, "split": np.full(len(table), split)}
    return table


def _files(root: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Relative paths of image files and of Parquet files in a fixed order, and other files with the reason; none is hidden."""
    images, tables, rejected = [], [], []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        before = "" if inside == "." else f"{inside}/"
        for name in sorted(name for name in files if not name.startswith(".")):
            relative, suffix = before + name, _suffix(name)  # a Path for each of a million files would take ten seconds
            if suffix.lower() == ".parquet":
                tables.append(relative)
            elif suffix.lower() in SUFFIXES:
                images.append(relative)
            else:
                rejected.append((relative, f"{suffix or 'no suffix'} is no image format known here"))
    return images, sorted(tables, key=lambda name: Path(name).parts), rejected


def _suffix(name: str) -> str:
    _, dot, end = name.rpartition(".")
    return f".{end}" if dot and end else ""


def _split_of(path: Path) -> str | None:
    """The split that a file's name or one of its folders stands for."""
    words = [*path.parts[:-1], path.stem]
    return next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), None)


def _by_path(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Split and label columns, where the names of folders give them."""
    found: dict[str, np.ndarray] = {}
    folders = [path.rpartition("/")[0] for path in paths]
    known = {folder: folder.split("/") for folder in set(folders)}
    of_split = {
        f: next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), "") for f, words in known.items()
    }
    of_label = {
        f: next((word for word in reversed(words) if word.lower() not in SPLITS), "") for f, words in known.items()
    }
    splits, labels = [of_split[folder] for folder in folders], [of_label[folder] for folder in folders]
    if any(splits):
        found["split"] = np.asarray(splits, dtype=np.str_)
    if len({label for label in labels if label}) > 1:
        found["label_name"] = np.asarray(labels, dtype=np.str_)
        found["label"] = numbered(found["label_name"])
    return found
